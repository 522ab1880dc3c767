"""A decoder that paints: latents and the embedding of a style to a picture, for styles that nobody fitted.

Responsible for the architecture and for what `strength` means in it. Knows nothing of prompts or of how it was trained
(`training/train_stylizer.py`). It stands beside the autoencoder's own decoder, which stays the reconstruction.

Shapes: B pictures, C latent channels, h x w latent size, E width of the embedding, f pixels per latent (2 or 4).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from .controls import blur, luminance

FINEST = 1.5  # pixels: the finest light is what a blur this wide removes


class StyleNorm(nn.Module):
    """Conditional instance normalisation: gives every channel the mean and deviation that the style asks for.

    `strength` mixes with the maps as they came, so that at 0 the layer is the identity and at 1 nothing of the
    photo's own contrast is left. `code`: (B, M), what the decoder made of the embedding.
    """

    def __init__(self, channels: int, code_dim: int) -> None:
        super().__init__()
        self.to_scale_shift = nn.Linear(code_dim, 2 * channels)
        nn.init.normal_(self.to_scale_shift.weight, std=0.02)
        with torch.no_grad():
            self.to_scale_shift.bias.copy_(torch.cat([torch.ones(channels), torch.zeros(channels)]))

    def forward(self, x: Tensor, code: Tensor, strength: float | Tensor) -> Tensor:
        # Two plain means: `std_mean` and `vector_norm` are several times slower on maps whose channels lie side by side.
        x32 = x.float()
        mean, square = x32.mean((2, 3)), x32.square().mean((2, 3))  # (B, C) each
        deviation = (square - mean.square()).clamp(min=1e-8).sqrt()  # (B, C)
        scale, shift = self.to_scale_shift(code).float().chunk(2, dim=1)
        factor = scale / (deviation + 1e-3)
        # One multiplication and one addition a pixel, whatever the strength.
        factor, offset = 1 + strength * (factor - 1), strength * (shift - mean * factor)
        factor, offset = (vector.to(x.dtype)[:, :, None, None] for vector in (factor, offset))
        return torch.addcmul(offset, x, factor)  # (B, C, H, W)


class StyleResBlock(nn.Module):
    """Two convolutions, each followed by the style's statistics, added to what came in."""

    def __init__(self, channels: int, code_dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect")
        self.norm1 = StyleNorm(channels, code_dim)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect")
        self.norm2 = StyleNorm(channels, code_dim)

    def forward(self, x: Tensor, code: Tensor, strength: float | Tensor) -> Tensor:
        y = self.norm1(self.conv1(x), code, strength).relu_()
        return x + self.norm2(self.conv2(y), code, strength)


class Grain(nn.Module):
    """Adds noise, as much of it as a style asks for in each channel: something to make strokes of where the photo is flat.

    Without it a decoder can only repeat there what its filters do to nothing, which is a lattice. The noise is a fixed
    tile, so that a picture always gets the same strokes, and a fit the same bits. `drifts`, which the training of the bundled
    models sets, lays it elsewhere each time. `origin`: where in the whole picture a tile begins, rows and columns of latents,
    of which one pixel of `x` covers `stride`.
    """

    drifts = False
    origin = (0, 0)

    def __init__(self, channels: int, code_dim: int, side: int = 64, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.to_amount = nn.Linear(code_dim, channels)
        nn.init.zeros_(self.to_amount.weight)
        nn.init.zeros_(self.to_amount.bias)
        noise = torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(0))
        self.register_buffer("noise", noise)

    def forward(self, x: Tensor, code: Tensor, strength: float | Tensor) -> Tensor:
        side, (height, width) = self.noise.shape[-1], x.shape[-2:]
        shift = (
            torch.randint(side, (2,)).tolist() if self.drifts else [-n // self.stride for n in self.origin]
        )
        noise = self.noise.roll(shift, (2, 3))
        noise = noise.tile(1, 1, -(-height // side), -(-width // side))[..., :height, :width]
        amount = (strength * self.to_amount(code)).to(x.dtype)[:, :, None, None]  # (B, C, 1, 1)
        return torch.addcmul(x, amount, noise.to(x.dtype))


class FineLight(nn.Module):
    """Puts the photo's own finest light in the place of what was painted so fine, as much of it as a style asks for.

    What makes a face legible is a few pixels wide, less than a stroke. `own` reads it from the latent, before any layer
    has given it the statistics of the style.
    """

    def __init__(self, latent_channels: int, code_dim: int, scale: int, width: int = 32) -> None:
        super().__init__()
        self.read = nn.Sequential(
            nn.Conv2d(latent_channels, width, 3, padding=1, padding_mode="reflect"),
            nn.ReLU(),
            nn.Conv2d(width, scale**2, 3, padding=1, padding_mode="reflect"),
            nn.PixelShuffle(scale),
        )
        self.to_amount = nn.Linear(code_dim, 1)
        nn.init.zeros_(self.to_amount.weight)
        nn.init.zeros_(self.to_amount.bias)

    def own(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 1, f*h, f*w): the light of the photo without its blur, for pictures in [0, 1]."""
        return self.read(latents)

    def forward(self, picture: Tensor, latents: Tensor, code: Tensor, strength: float | Tensor) -> Tensor:
        """picture: (B, 3, f*h, f*w) in [0, 1] -> what to add to each of its channels, (B, 1, f*h, f*w)."""
        painted = luminance(picture.float())
        missing = self.own(latents) - painted + blur(painted, FINEST)  # (B, 1, f*h, f*w)
        amount = (strength * self.to_amount(code).sigmoid())[:, :, None, None]  # (B, 1, 1, 1)
        return (amount * missing).to(picture.dtype)


class ConditionalDecoder(ModelMixin, ConfigMixin):
    """`forward(latents, prompt_embeds, strength)`: scaled latents (B, C, h, w) -> pictures (B, 3, f*h, f*w) in about [-1, 1].

    Most of the work is done at half the latent's resolution, where strokes are as wide as a filter and a filter costs
    a quarter. The latent itself joins again on the way up and brings the edges. Widths: `channels` of the three
    resolutions h/2, h and 2h. `reads_fine_light`: whether the finest light is the photo's, see `FineLight`.
    """

    # Parts of the names of what an embedding steers. A fit trains these alone: the filters of learnt strokes hardly paint the
    # patterns that only a network can see, which filters that are free soon do.
    STEERING = ("to_code.", "to_scale_shift.", "to_amount.")

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        cond_dim: int = 192,
        code_dim: int = 128,
        channels: Sequence[int] = (96, 64, 24),
        depth: int = 4,
        scale: int = 4,
        reads_fine_light: bool = False,
    ) -> None:
        super().__init__()
        if scale not in (2, 4):
            raise ValueError(f"scale is {scale!r}, wanted 2 or 4 pixels per latent.")
        low, mid, high = channels

        def conv(width_in: int, width_out: int, stride: int = 1) -> nn.Conv2d:
            return nn.Conv2d(width_in, width_out, 3, stride=stride, padding=1, padding_mode="reflect")

        def unpadded(width_in: int, width_out: int) -> nn.Conv2d:
            return nn.Conv2d(width_in, width_out, 3)

        self.to_code = nn.Sequential(
            nn.Linear(cond_dim, code_dim), nn.SiLU(), nn.Linear(code_dim, code_dim), nn.SiLU()
        )
        self.conv_in = conv(latent_channels, mid)
        self.down = conv(mid, low, stride=2)
        self.norm_down = StyleNorm(low, code_dim)
        self.grain_low = Grain(low, code_dim, stride=2)
        self.blocks = nn.ModuleList(StyleResBlock(low, code_dim) for _ in range(depth))
        self.up = conv(low, mid)
        self.norm_up = StyleNorm(mid, code_dim)
        self.grain_mid = Grain(mid, code_dim)
        self.block_mid = StyleResBlock(mid, code_dim)
        self.widen = unpadded(mid, high)
        self.norm_widen = StyleNorm(high, code_dim)
        self.refine = unpadded(high, 16) if scale == 4 else None
        self.conv_out = unpadded(16 if scale == 4 else high, 3)
        self.fine_light = FineLight(latent_channels, code_dim, scale) if reads_fine_light else None

    def forward(self, latents: Tensor, prompt_embeds: Tensor, strength: float | Tensor = 1.0) -> Tensor:
        """strength: one number, or (B, 1) for each picture its own. Between 0 and 1 the pictures of both are mixed: statistics
        halfway between a photo's and a style's may be those of a third style. Above 1 is as 1, since beyond those of a style all
        is soon white."""
        channels, cond_dim = self.config.latent_channels, self.config.cond_dim
        if latents.ndim != 4 or latents.shape[1] != channels or min(latents.shape[-2:]) < 4:
            raise ValueError(
                f"latents have shape {tuple(latents.shape)}, wanted (B, {channels}, h, w) of at least 4 x 4."
            )
        if prompt_embeds is None or prompt_embeds.shape[-1] != cond_dim:
            got = None if prompt_embeds is None else tuple(prompt_embeds.shape)
            raise ValueError(
                f"prompt_embeds are {got}, wanted (B, {cond_dim}): this decoder paints after an embedding; give a prompt, "
                "a style_image or prompt_embeds."
            )
        share = torch.as_tensor(strength, dtype=latents.dtype, device=latents.device).clamp(max=1)
        # As the fusion does: entries of a unit vector are too small to steer anything.
        cond = F.normalize(prompt_embeds.float(), dim=-1) * math.sqrt(cond_dim)  # (B, E)
        code = self.to_code(cond.to(latents.dtype))  # (B, M)
        if ((share == 0) | (share == 1)).all():
            return self.paint(latents, code, share)
        plain, painted = self.paint(latents, code, 0.0), self.paint(latents, code, 1.0)  # (B, 3, f*h, f*w)
        return torch.lerp(plain, painted, share[..., None, None])

    def paint(self, latents: Tensor, code: Tensor, strength: float | Tensor) -> Tensor:
        """Latents (B, C, h, w) and the codes of styles (B, M) -> pictures (B, 3, f*h, f*w)."""
        height, width = latents.shape[-2:]
        z = latents.contiguous(memory_format=torch.channels_last)
        z = F.pad(z, (0, width % 2, 0, height % 2), mode="replicate")
        skip = self.conv_in(z).relu_()  # (B, mid, h, w)
        x = self.norm_down(self.down(skip), code, strength).relu_()  # (B, low, h/2, w/2)
        x = self.grain_low(x, code, strength)
        for block in self.blocks:
            x = block(x, code, strength)
        x = _conv_at_twice(x, self.up) + skip  # (B, mid, h, w)
        x = self.grain_mid(self.norm_up(x, code, strength).relu_(), code, strength)
        x = self.block_mid(x, code, strength)
        # From here the convolutions eat a margin that is added once, where it costs least.
        x = F.pad(x, (2, 2, 2, 2), mode="reflect")
        x = _conv_at_twice(x, self.widen)[:, :, 1:-1, 1:-1]  # (B, high, 2h + 6, 2w + 6)
        x = self.norm_widen(x, code, strength).relu_()
        if self.refine is None:
            x = self.conv_out(x)  # (B, 3, 2h + 4, 2w + 4)
        else:
            x = self.refine(x).relu_()  # (B, 16, 2h + 4, 2w + 4)
            x = _conv_at_twice(x, self.conv_out)[:, :, 1:-1, 1:-1]  # (B, 3, 4h + 6, 4w + 6)
        f = self.config.scale
        margin = (x.shape[-1] - f * z.shape[-1]) // 2
        x = x[..., margin : margin + height * f, margin : margin + width * f]  # (B, 3, f*h, f*w)
        if self.fine_light is not None:
            x = x.add_(self.fine_light(x, latents, code, strength))
        return x.mul_(2).sub_(1)


def _conv_at_twice(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A 3x3 convolution of `x` (B, C, h, w) at twice its size, (B, C', 2h, 2w), the border repeated.

    Bilinear: after nearest upsampling a style can colour the four pixels of a cell differently, which shows as a grid. Each
    of the four pixels of a cell depends on the 3 x 3 cells around it, so that one convolution before the upsampling gives
    all four, and the enlarged map, the largest of all, is never made.
    """
    # What cell -1, 0 or 1 gives to pixel -1, 0, 1 or 2, counted from the first pixel of cell 0.
    share = x.new_tensor([[0.75, 0.25, 0.0], [0.25, 0.75, 0.0], [0.0, 0.75, 0.25], [0.0, 0.25, 0.75]])
    share = share.unfold(0, 3, 1)  # (2, 3 cells, 3 taps): of the first and the second pixel
    kernel = torch.einsum("ocyx,piy,qjx->pqocij", conv.weight, share, share)
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate").contiguous(memory_format=torch.channels_last)
    cells = F.conv2d(padded, kernel.flatten(0, 2), conv.bias.repeat(4))  # (B, 4 * C', h, w)
    # As `pixel_shuffle` does it, but on channels that lie side by side and stay so.
    pixels = cells.permute(0, 2, 3, 1).unflatten(3, (2, 2, -1)).transpose(2, 3)  # (B, h, 2, w, 2, C')
    return pixels.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)
