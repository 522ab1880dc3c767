"""What a user may keep of the photo: its colours, its structure, and the size of the strokes. Pictures in [0, 1].

Responsible for the controls that act on pictures before and after the model. Knows nothing of models. Strength acts
on latents and weights instead (`style_mixing.py`, `style_decoder.py`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)  # BT.601


def luminance(rgb: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W)."""
    return (rgb * rgb.new_tensor(_LUMA).view(3, 1, 1)).sum(1, keepdim=True)


def keep_colors(stylized: Tensor, content: Tensor) -> Tensor:
    """The luminance of `stylized` with the chroma of `content`."""
    return (content + luminance(stylized) - luminance(content)).clamp(0, 1)


def enforce_structure(stylized: Tensor, content: Tensor, structure: float) -> Tensor:
    """Moves the edges and fine luminance of `stylized` towards those of `content`: 0 not at all, 1 all the way.

    Only what a blur over 1/64 of the picture removes is moved, so broad light and colour stay those of the style.
    """
    if structure == 0:
        return stylized
    ours, theirs = luminance(stylized), luminance(content)
    sigma = max(1.0, min(content.shape[-2:]) / 64)
    detail = (theirs - _blur(theirs, sigma)) - (ours - _blur(ours, sigma))
    return (stylized + structure * detail).clamp(0, 1)


def stroke_size(height: int, width: int, stroke_scale: float, smallest: int) -> tuple[int, int]:
    """Size at which the model works: a picture half as large has strokes twice as large, seen at full size again."""
    return tuple(max(smallest, round(side / stroke_scale)) for side in (height, width))


def resize(rgb: Tensor, size: tuple[int, int]) -> Tensor:
    if rgb.shape[-2:] == torch.Size(size):
        return rgb
    return F.interpolate(rgb, size=size, mode="bicubic", antialias=True).clamp(0, 1)


def _blur(image: Tensor, sigma: float) -> Tensor:
    radius = round(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    rows = F.conv2d(F.pad(image, (radius, radius, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    return F.conv2d(F.pad(rows, (0, 0, radius, radius), mode="replicate"), kernel.view(1, 1, -1, 1))
