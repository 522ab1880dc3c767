"""SaMam (arXiv 2503.15934): the style image becomes numbers that steer every part of a Mamba decoder.

Responsible for: the layers, and the two ways to begin. The scan is in `path_scan.py`, the arithmetic between style and
features in `style_aware.py`, what is shared with Mamba-ST in `image_guided_model.py`. What is different from Mamba-ST: the
style is a small embedding (R, 3, 3) of the whole picture, and it writes A and D of the scan, kernels, gains and offsets;
the tokens of the style image themselves never meet the content.

Ours and the public code's. A new `SaMam` passes the content's features through unchanged, and every parameter can learn.
With `compat=True` it has the formulas of the public checkpoints (`public_checkpoints.py` reads those): gains without the
one, decay rates without Mamba's start, a second residual around each group, zeros beyond the border, and nearest upsampling.
The parameters are the same.

Shapes: B pictures, C = embed_dim features, h x w patches, R = style_dim, D = expand * C, K paths, N states.
"""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import is_accelerate_available
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from .image_guided_model import ImageGuidedModel, PictureDecoder, StyleUnits, keep_variance, same_size
from .path_scan import PathScan
from .style_aware import channel_gate, sain, style_conv


def _zero(layer: nn.Linear | nn.Conv2d) -> None:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _project(x: Tensor, layer: nn.Linear) -> Tensor:
    """A linear layer on the channels of (B, C, h, w)."""
    return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LocalEnhancement(nn.Module):
    """LoE: brings back what a path tears apart, by two convolutions and a gate on every channel."""

    def __init__(self, channels: int, compat: bool, squeeze: int = 8) -> None:
        super().__init__()
        narrow = max(1, channels // squeeze)
        self.conv1 = same_size(channels, narrow, compat)
        self.conv2 = same_size(narrow, channels, compat)
        self.gate1 = nn.Conv2d(channels, narrow, 1)
        self.gate2 = nn.Conv2d(narrow, channels, 1)
        if not compat:
            _zero(self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.gelu(self.conv1(x)))
        gate = self.gate2(F.relu(self.gate1(y.mean((2, 3), keepdim=True))))
        return x + y * torch.sigmoid(gate)


class VSSM(nn.Module):
    """The block of the encoders: x + out(scan(SiLU(DWConv(in(x)))))."""

    def __init__(self, channels: int, d_state: int, expand: int, scan_order: str, compat: bool) -> None:
        super().__init__()
        d_inner = expand * channels
        self.in_proj = nn.Linear(channels, d_inner, bias=False)
        self.conv = same_size(d_inner, d_inner, compat, groups=d_inner)
        self.scan = PathScan(d_inner, -(-channels // 16), d_state, scan_order)
        self.out_proj = nn.Linear(d_inner, channels, bias=False)
        if not compat:
            _zero(self.out_proj)

    def forward(self, x: Tensor) -> Tensor:
        u = F.silu(self.conv(_project(x, self.in_proj)))  # (B, D, h, w)
        return x + _project(self.scan(u), self.out_proj)


class Encoder(nn.Module):
    """Pictures (B, 3, H, W) -> features (B, C, h, w)."""

    def __init__(
        self, channels: int, patch_size: int, depth: int, d_state: int, expand: int, scan_order: str,
        local_enhancement: bool, compat: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.patch_embed = nn.Conv2d(3, channels, patch_size, stride=patch_size)
        keep_variance(self.patch_embed)
        self.blocks = nn.Sequential(
            *(VSSM(channels, d_state, expand, scan_order, compat) for _ in range(depth))
        )
        self.local = LocalEnhancement(channels, compat) if local_enhancement else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.local(self.blocks(self.patch_embed(images)))


class StyleEmbedder(nn.Module):
    """Features of the style image (B, C, h, w) -> its style embedding (B, R, 3, 3).

    Ours is in `StyleUnits`. Left to itself it grows a hundredfold within a hundred steps of training, and all that it
    steers with it, until decays overflow.
    """

    def __init__(self, channels: int, style_dim: int, patch_size: int, compat: bool) -> None:
        super().__init__()
        self.units = None if compat else StyleUnits(9 * style_dim)
        stages = 3 if patch_size == 8 else 4
        self.smallest = 2**stages  # patches a side
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect") for _ in range(stages)
        )
        self.out = nn.Linear(16 * channels, 9 * style_dim)
        for layer in (*self.convs, self.out):
            keep_variance(layer)

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[-2:]) < self.smallest:
            raise ValueError(
                f"the style image has {x.shape[-1]} x {x.shape[-2]} patches, wanted at least {self.smallest} a side: enlarge it."
            )
        for conv in self.convs:
            x = F.avg_pool2d(F.leaky_relu(conv(x)), 2)
        x = F.adaptive_avg_pool2d(x, 4).flatten(1)  # (B, 16 * C)
        style = self.out(x)  # (B, 9 * R)
        style = style if self.units is None else self.units(F.layer_norm(style, style.shape[1:]))
        return style.unflatten(1, (-1, 3, 3))  # (B, R, 3, 3)


class SAIN(nn.Module):
    """Style-aware instance norm: gain and offset of every channel from the pooled style (B, R)."""

    def __init__(self, channels: int, style_dim: int, compat: bool) -> None:
        super().__init__()
        self.unit_gain = not compat
        self.gain = nn.Linear(style_dim, channels)
        self.offset = nn.Linear(style_dim, channels)
        if not compat:
            _zero(self.gain)
            _zero(self.offset)

    def forward(self, x: Tensor, pooled: Tensor) -> Tensor:
        return sain(x, self.gain(pooled), self.offset(pooled), unit_gain=self.unit_gain)


class LayerNorm2d(nn.LayerNorm):
    """What SAIN is compared with: a layer norm of each pixel, which no style can steer."""

    def forward(self, x: Tensor, pooled: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class StyleDecay(nn.Module):
    """S7: A and D of a scan from the pooled style (B, R), so that a style decides how far a token is remembered.

    Ours starts from Mamba's A = -(1..N) and D = 1; the public code from wherever its random layers point.
    """

    def __init__(self, style_dim: int, rows: int, d_state: int, compat: bool) -> None:
        super().__init__()
        self.compat, self.d_state = compat, d_state
        self.to_A = nn.Linear(style_dim, rows * d_state)
        self.to_D = nn.Linear(style_dim, rows)
        if not compat:
            _zero(self.to_A)
            _zero(self.to_D)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        A = -torch.exp(self.to_A(pooled).float()).unflatten(1, (-1, self.d_state))  # (B, K*D, N)
        D = self.to_D(pooled).float()  # (B, K*D)
        if self.compat:
            return A, D
        return A * torch.arange(1, self.d_state + 1, device=A.device), 1 + D


class ChannelGate(nn.Module):
    """SCM: one factor for every channel from the style embedding (B, R, 3, 3)."""

    def __init__(self, channels: int, style_dim: int, compat: bool) -> None:
        super().__init__()
        self.unit_gain = not compat
        self.conv = nn.Conv2d(style_dim, style_dim // 4, 3, stride=3, bias=False)
        self.act = nn.PReLU()
        self.out = nn.Conv2d(style_dim // 4, channels, 1, bias=False)
        if not compat:
            _zero(self.out)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        v = self.out(self.act(self.conv(style)))  # (B, C, 1, 1)
        return channel_gate(x, v[..., 0, 0], unit_gain=self.unit_gain)


class SAVSSM(nn.Module):
    """The block of the decoder: out(SAIN(scan(SiLU(SConv(in(SAIN(x))))))) + SCM(x), all steered by the style."""

    def __init__(
        self, channels: int, style_dim: int, d_state: int, expand: int, scan_order: str, norm: str, style_decay: bool,
        compat: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        d_inner = expand * channels

        def normalise(width: int) -> nn.Module:
            return SAIN(width, style_dim, compat) if norm == "sain" else LayerNorm2d(width)

        self.norm_in = normalise(channels)
        self.in_proj = nn.Linear(channels, d_inner, bias=False)
        self.to_kernel = nn.Conv2d(style_dim, d_inner, 3, padding=1, padding_mode="reflect")
        self.scan = PathScan(d_inner, -(-channels // 16), d_state, scan_order, own_decay=not style_decay)
        self.decay = (
            StyleDecay(style_dim, self.scan.paths * d_inner, d_state, compat) if style_decay else None
        )
        self.norm_out = normalise(d_inner)
        self.out_proj = nn.Linear(d_inner, channels, bias=False)
        self.gate = ChannelGate(channels, style_dim, compat)
        if not compat:
            _zero(self.out_proj)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        pooled = style.mean((2, 3))  # (B, R)
        kernel = F.leaky_relu(self.to_kernel(style), 0.1)  # (B, D, 3, 3)
        u = _project(self.norm_in(x, pooled), self.in_proj)  # (B, D, h, w)
        u = F.silu(style_conv(u.contiguous(), kernel))
        y = self.scan(u, decay=None if self.decay is None else self.decay(pooled))
        y = _project(self.norm_out(y, pooled), self.out_proj)  # (B, C, h, w)
        return y + self.gate(x, style)


class DecoderGroup(nn.Module):
    """Some SAVSSM and a LoE. In the public code a residual goes around the blocks; ours pass x on by themselves, where one
    more would only double it."""

    def __init__(self, blocks: list[SAVSSM], local: nn.Module, compat: bool) -> None:
        super().__init__()
        self.compat = compat
        self.blocks = nn.ModuleList(blocks)
        self.local = local

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        y = x
        for block in self.blocks:
            y = block(y, style)
        return self.local(x + y if self.compat else y)


class SaMam(ImageGuidedModel, ModelMixin, ConfigMixin):
    """`forward(content, style, strength)`: pictures in [0, 1] -> pictures of the size of `content`.

    The defaults are those of the paper: 19,772,007 parameters, 20,140,775 with `patch_size=4`.
    decoder_width: of the convolutions that make the picture; half of `embed_dim` if left out.
    styled_decoder: for small models, the options of `make_styled_decoder`, in place of convolutions that are the same for all
        styles. The style embedding then has some more channels, the signature of the style.
    scan_order, local_enhancement, norm ("sain" or "layer"), style_decay: what the ablations take away.
    """

    _no_split_modules = ["VSSM", "SAVSSM"]
    # diffusers can see to this only with accelerate, and would refuse to load without it.
    _keep_in_fp32_modules = ["A_log", "D", "dt_bias"] if is_accelerate_available() else None

    @register_to_config
    def __init__(
        self,
        embed_dim: int = 256,
        patch_size: int = 8,
        style_dim: int = 64,
        encoder_depth: int = 2,
        groups: int = 2,
        group_depth: int = 2,
        decoder_width: int | None = None,
        d_state: int = 16,
        expand: int = 2,
        scan_order: str = "zigzag",
        local_enhancement: bool = True,
        norm: str = "sain",
        style_decay: bool = True,
        styled_decoder: dict | None = None,
        compat: bool = False,
    ) -> None:
        super().__init__()
        if norm not in ("sain", "layer"):
            raise ValueError(f"norm is {norm!r}, wanted 'sain' or 'layer'.")

        def encoder() -> Encoder:
            return Encoder(
                embed_dim, patch_size, encoder_depth, d_state, expand, scan_order, local_enhancement, compat
            )

        def block() -> SAVSSM:
            return SAVSSM(embed_dim, style_dim, d_state, expand, scan_order, norm, style_decay, compat)

        def local() -> nn.Module:
            return LocalEnhancement(embed_dim, compat) if local_enhancement else nn.Identity()

        self.content_encoder = encoder()
        self.style_encoder = encoder()
        self.style_embedder = StyleEmbedder(embed_dim, style_dim, patch_size, compat)
        self.decoder_groups = nn.ModuleList(
            DecoderGroup([block() for _ in range(group_depth)], local(), compat) for _ in range(groups)
        )
        if styled_decoder is not None:
            self.make_styled_decoder(**styled_decoder)
        else:
            width = decoder_width or embed_dim // 2
            self.decoder = PictureDecoder(embed_dim, width, patch_size, "nearest" if compat else "bilinear")

    @apply_forward_hook
    def encode_content(self, images: Tensor) -> Tensor:
        return self.carry(self.content_encoder(self.whole_patches(images)))  # (B, C, h, w)

    @apply_forward_hook
    def encode_style(self, images: Tensor) -> Tensor:
        style = self.style_embedder(self.style_encoder(self.whole_patches(images)))  # (B, R, 3, 3)
        if self.config.styled_decoder is None:
            return style
        signature = F.pad(self.signature(images), (0, -self.signed % 9))  # to whole channels
        return torch.cat([style, signature.unflatten(1, (-1, 3, 3))], 1)  # (B, R + R', 3, 3)

    @apply_forward_hook
    def fuse(self, features: Tensor, style: Tensor) -> Tensor:
        style = style.expand(len(features), -1, -1, -1)  # one style for all pictures, or one each
        if self.config.styled_decoder is None:
            return self._fuse_features(features, style)
        style, signature = style[:, : self.config.style_dim], style[:, self.config.style_dim :].flatten(1)
        return self.carry(self._fuse_features(self.uncarry(features)[0], style), signature[:, : self.signed])

    def _fuse_features(self, features: Tensor, style: Tensor) -> Tensor:
        for group in self.decoder_groups:
            features = group(features, style)
        return features

    def decode(self, features: Tensor) -> Tensor:
        return self.decoder(features) if self.config.styled_decoder is None else self.paint(features)
