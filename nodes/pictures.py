"""IMAGE, MASK and VIDEO of the host to tensors (B, C, H, W), and back.

Responsible for the forms these come in. Knows nothing of models; what a picture must be is checked by
`pipeline/images.py`.
"""

from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from . import host

_NO_MASK = (64, 64)  # LoadImage gives zeros of this size for a picture without alpha
FRAME_RATE = Fraction(24)


def from_image(image: Tensor) -> Tensor:
    """IMAGE (B, H, W, C) of 1, 3 or 4 channels, any float type, any device -> (B, C, H, W) float32 in [0, 1]."""
    if image.ndim == 3:
        image = image[None]
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"image has shape {tuple(image.shape)}, wanted (B, H, W, C) with 1, 3 or 4 channels: connect an IMAGE."
        )
    if not len(image):
        raise ValueError("image is an empty batch, wanted at least one picture.")
    # Contiguous: another layout in memory takes other kernels, and gives other last digits than the Python package.
    return image.movedim(-1, 1).float().clamp(0, 1).contiguous()


def to_image(pictures: Tensor) -> Tensor:
    """(B, C, H, W) -> IMAGE on the host's intermediate device, of its intermediate type."""
    return host.intermediate(pictures.movedim(1, -1).contiguous())


def from_pil(picture) -> Tensor:
    from ..pipeline.images import read_images

    return torch.cat([content.rgb for content in read_images(picture)])


def from_mask(
    mask: Tensor | None, batch: int, size: tuple[int, int], picture: tuple[int, int] | None = None
) -> Tensor | None:
    """MASK (H, W), (B, H, W) or (B, 1, H, W) of any size -> (batch, 1, *size) in [0, 1], 1 where to stylize.

    Fewer masks than pictures are repeated, as the host does. None where no mask was drawn. picture: its size, where `size` is
    that of its latents.
    """
    if mask is None:
        return None
    mask = mask.float()
    mask = mask.reshape(-1, 1, *mask.shape[-2:])
    if mask.shape[-2:] == _NO_MASK != tuple(picture or size) and not mask.any():
        return None
    if mask.shape[-2:] != tuple(size):
        mask = F.interpolate(mask, size=size, mode="bilinear", align_corners=False)
    return mask[torch.arange(batch) % len(mask)].clamp(0, 1)


def from_image_or_video(value) -> tuple[Tensor, object, Fraction]:
    """IMAGE or VIDEO -> IMAGE, with the sound and frame rate of a video."""
    if isinstance(value, Tensor):
        return value, None, FRAME_RATE
    components = value.get_components()
    return components.images, components.audio, components.frame_rate
