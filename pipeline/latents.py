"""Pictures to latents and back, in the scaled convention of diffusers, for every autoencoder of the SD family.

The autoencoder's own `encode` and `decode` know nothing of the scale (0.18215 for SD 1.5); here is the one place that
applies it. The mode of the posterior is taken, never a sample: the same picture has the same latent.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .linear_stem import encode_by_stem, stem_of

BEYOND = 4  # latents on each side, as far as the zeros that a small encoder sees beyond the picture reach


def vae_scale_factor(vae: nn.Module | None) -> int:
    """Pixels per latent, on a side."""
    config = getattr(vae, "config", None)
    for name in ("down_block_out_channels", "block_out_channels", "encoder_block_out_channels"):
        channels = getattr(config, name, None)
        if channels is not None:
            return 2 ** (len(channels) - 1)
    return 8


def scale_latents(vae: nn.Module, latents: Tensor) -> Tensor:
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    return (latents - shift) * vae.config.scaling_factor


def unscale_latents(vae: nn.Module, latents: Tensor) -> Tensor:
    """What the autoencoder's own `decode` takes."""
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    return latents / vae.config.scaling_factor + shift


def encode_latents(vae: nn.Module, images: Tensor, beyond: int = 0) -> Tensor:
    """(B, 3, H, W) in [-1, 1], sides a multiple of the scale factor -> scaled latents (B, C, h, w).

    beyond: so many latents of the mirrored picture lie around it while it is encoded. An encoder sees zeros there, which the
        decoder that it was trained with makes up for; one that paints in styles makes a frame of them.
    """
    if beyond:
        pixels = beyond * vae_scale_factor(vae)
        mode = "reflect" if min(images.shape[-2:]) > pixels else "replicate"
        wide = F.pad(images, (pixels, pixels, pixels, pixels), mode=mode)
        return encode_latents(vae, wide)[..., beyond:-beyond, beyond:-beyond]
    if stem := stem_of(vae):
        return scale_latents(vae, encode_by_stem(vae.encoder, stem, images))
    encoded = vae.encode(images)
    latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
    return scale_latents(vae, latents)


def decode_latents(vae: nn.Module, latents: Tensor) -> Tensor:
    """Scaled latents (B, C, h, w) -> pictures (B, 3, H, W), about [-1, 1], not clamped."""
    return vae.decode(unscale_latents(vae, latents)).sample
