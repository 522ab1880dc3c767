"""Mamba-ST (arXiv 2409.10385): a scan that writes the tokens of the style image and is read by those of the content.

Responsible for: the layers, the shuffle of style tokens, and the two ways to begin. The scan is in `path_scan.py`, what is
shared with SaMam in `image_guided_model.py`. What is different from SaMam: no layer is steered by a style. The two
pictures are two streams of tokens, and one scan takes u, Delta and B from the style, C and the gate from the content; as
attention this would be keys and values from the style, queries from the content.

Ours and the public code's. A new `MambaST` passes the content's features through unchanged (the norm that ends each
block starts at zero), and every parameter can learn. With `compat=True` it begins and upsamples as the public code
does, and holds the layers that code has but never uses, so that a public checkpoint fits (`public_checkpoints.py`).

Shapes: B pictures, C = embed_dim features, h x w patches, L = h * w, D = expand * C.
"""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import is_accelerate_available
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from .image_guided_model import ImageGuidedModel, PictureDecoder, keep_variance, same_size
from .path_scan import PathScan


def _channels_last(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer of the last axis on the channels of (B, C, h, w)."""
    return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class StyleReadingMixer(nn.Module):
    """SS2D, and with a style ST-2D-SSM: out(norm(scan(u, read by C)) * SiLU(z)).

    Without a style, u and C are both made of the content, which is VMamba's block.
    """

    def __init__(
        self, channels: int, d_state: int, expand: int, scan_order: str, reads_style: bool, compat: bool
    ) -> None:
        super().__init__()
        d_inner = expand * channels
        self.in_proj = nn.Linear(channels, 2 * d_inner, bias=False)
        self.style_proj = nn.Linear(channels, d_inner, bias=False) if reads_style else None
        self.conv = same_size(d_inner, d_inner, compat, groups=d_inner)
        self.scan = PathScan(d_inner, -(-channels // 16), d_state, scan_order)
        self.norm = nn.LayerNorm(d_inner)
        self.out_proj = nn.Linear(d_inner, channels, bias=False)

    def forward(self, content: Tensor, style: Tensor | None = None) -> Tensor:
        x, z = _channels_last(self.in_proj, content).chunk(2, dim=1)  # (B, D, h, w) each
        x = F.silu(self.conv(x.contiguous(memory_format=torch.channels_last)))
        if style is None:
            y = self.scan(x)
        else:
            u = F.silu(self.conv(_channels_last(self.style_proj, style)))  # (B, D, h, w)
            y = self.scan(u, reader=x)
        return _channels_last(self.out_proj, _channels_last(self.norm, y) * F.silu(z))


class MambaSTBlock(nn.Module):
    """norm_out(scale * x + mixer(norm_in(x), style)) + x."""

    def __init__(
        self, channels: int, d_state: int, expand: int, scan_order: str, reads_style: bool, compat: bool
    ) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(channels)
        # The public code's encoders have the projection of a style as well, though they are never given one.
        self.mixer = StyleReadingMixer(channels, d_state, expand, scan_order, reads_style or compat, compat)
        self.scale = nn.Parameter(torch.ones(channels))
        self.norm_out = nn.LayerNorm(channels)
        self.unused_scale = nn.Parameter(torch.ones(channels)) if compat else None
        if not compat:
            nn.init.zeros_(self.norm_out.weight)

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        y = self.mixer(_channels_last(self.norm_in, x), style)
        return _channels_last(self.norm_out, torch.addcmul(y, x, self.scale.view(-1, 1, 1))) + x


class MambaST(ImageGuidedModel, ModelMixin, ConfigMixin):
    """`forward(content, style, strength, shuffles=0, generator=None)`: pictures in [0, 1] -> pictures of the size of `content`.

    The defaults are those of the paper; with `compat` 27,082,819 parameters.
    decoder_width: of the convolutions that make the picture; half of `embed_dim` if left out.
    styled_decoder: for small models, the options of `make_styled_decoder`, in place of convolutions that are the same for all
        styles.
    """

    _no_split_modules = ["MambaSTBlock"]
    # diffusers can see to this only with accelerate, and would refuse to load without it.
    _keep_in_fp32_modules = ["A_log", "D", "dt_bias"] if is_accelerate_available() else None

    @register_to_config
    def __init__(
        self,
        embed_dim: int = 512,
        patch_size: int = 8,
        encoder_depth: int = 3,
        depth: int = 3,
        decoder_width: int | None = None,
        d_state: int = 16,
        expand: int = 2,
        scan_order: str = "cross",
        styled_decoder: dict | None = None,
        compat: bool = False,
    ) -> None:
        super().__init__()

        def blocks(count: int, reads_style: bool) -> list[MambaSTBlock]:
            options = (embed_dim, d_state, expand, scan_order, reads_style, compat)
            return [MambaSTBlock(*options) for _ in range(count)]

        self.patch_embed = nn.Conv2d(3, embed_dim, patch_size, stride=patch_size)
        keep_variance(self.patch_embed)
        self.content_encoder = nn.Sequential(*blocks(encoder_depth, False))
        self.style_encoder = nn.Sequential(*blocks(encoder_depth, False))
        self.blocks = nn.ModuleList(blocks(depth, True))
        self.norm = nn.LayerNorm(embed_dim) if styled_decoder is None else None
        self.unused_position = nn.Conv2d(embed_dim, embed_dim, 1) if compat else None
        if styled_decoder is not None:
            self.make_styled_decoder(**styled_decoder)
        else:
            width = decoder_width or embed_dim // 2
            self.decoder = PictureDecoder(embed_dim, width, patch_size, "nearest" if compat else "bilinear")

    @apply_forward_hook
    def encode_content(self, images: Tensor) -> Tensor:
        return self.carry(self.content_encoder(self.patch_embed(self.whole_patches(images))))  # (B, C, h, w)

    @apply_forward_hook
    def encode_style(self, images: Tensor) -> Tensor:
        tokens = self.style_encoder(self.patch_embed(self.whole_patches(images)))  # (B, C, h', w')
        if self.config.styled_decoder is None:
            return tokens
        signature = self.signature(images)[:, :, None, None]
        return torch.cat([tokens, signature.expand(-1, -1, *tokens.shape[-2:])], 1)  # (B, C + E + 12, h', w')

    @apply_forward_hook
    def fuse(
        self, features: Tensor, style: Tensor, shuffles: int = 0, generator: torch.Generator | None = None
    ) -> Tensor:
        """style: one for all pictures, or one each, on a grid of any size.

        shuffles: 0 leaves the style's tokens in their order, and the same pictures always give the same result. 1 puts
        them in a random order, another one for each block, so that only what the style looks like can pass, not where; more
        give the mean over so many orders.
        """
        if len(style) not in (1, len(features)):
            raise ValueError(f"got {len(style)} styles for {len(features)} pictures, wanted one or as many.")
        if self.config.styled_decoder is None:
            return self._fuse_tokens(features, style, shuffles, generator)
        features, channels = self.uncarry(features)[0], self.config.embed_dim
        fused = self._fuse_tokens(features, style[:, :channels], shuffles, generator)
        return self.carry(fused, style[:, channels:, 0, 0])

    def _fuse_tokens(
        self, features: Tensor, style: Tensor, shuffles: int, generator: torch.Generator | None
    ) -> Tensor:
        # Every content token is read off one style token. Nearest: the mean of two tokens would hold neither.
        style = F.interpolate(style, size=features.shape[-2:], mode="nearest").expand_as(features)
        if shuffles == 0:
            return self._fuse_once(features, [style] * len(self.blocks))
        orders = ([_shuffled(style, generator) for _ in self.blocks] for _ in range(shuffles))
        return torch.stack([self._fuse_once(features, styles) for styles in orders]).mean(0)

    def _fuse_once(self, features: Tensor, styles: list[Tensor]) -> Tensor:
        for block, style in zip(self.blocks, styles, strict=True):
            features = block(features, style)
        return features

    def decode(self, features: Tensor) -> Tensor:
        if self.config.styled_decoder is None:
            return self.decoder(_channels_last(self.norm, features))
        return self.paint(features)


def _shuffled(style: Tensor, generator: torch.Generator | None) -> Tensor:
    """The tokens of (B, C, h, w) in a random order, the same for all pictures."""
    device = generator.device if generator else "cpu"  # a seed means the same order on every machine
    order = torch.randperm(style.shape[2] * style.shape[3], generator=generator, device=device)
    return style.flatten(2)[..., order.to(style.device)].view(style.shape)
