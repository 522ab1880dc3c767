"""Where a style goes: masks that fade out inside their edge, and text that has to stay legible.

Knows nothing of models. How a mask is read is in `images.py`, how it is used in `style_mixing.composite`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .controls import blur, luminance

_EDGE = 0.12  # a step in luminance from which on it may be the edge of a letter
_FLAT = 0.02  # a step up to which a ground is even, as it is around letters and rarely in a photo


def feather_mask(mask: Tensor, radius: float) -> Tensor:
    """Fades a mask (B, 1, H, W) out over about `radius` pixels inside its edge. Never outside of it: what is 0 stays 0."""
    if radius == 0:
        return mask
    inside = (mask > 0).to(mask.dtype)
    # Half a blur is left on a straight edge, and next to nothing two deviations further out: 0 at the edge, 1 at `radius`.
    return mask * (2 * blur(inside, radius / 2) - 1).clamp(0, 1)


def find_text(rgb: Tensor, margin: float = 1.0) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 1, H, W), 1 on text and line art, fading out around it: many sharp edges close together on an even ground.

    Made for screens and pages. In photos, hard texture on a blurred ground may be taken for text. `margin`: how far around
    the text, 1 is about the height of a small letter.
    """
    grey = luminance(rgb)
    step = torch.zeros_like(grey)
    across, down = (grey.diff(dim=dim).abs() for dim in (-1, -2))
    for part, change in (
        (step[..., 1:], across), (step[..., :-1], across), (step[..., 1:, :], down), (step[..., :-1, :], down),
    ):  # fmt: skip
        torch.maximum(part, change, out=part)
    window = text_size(rgb)
    edges = _mean_around((step > _EDGE).to(grey.dtype), window)
    even = _mean_around((step < _FLAT).to(grey.dtype), window)
    text = ((edges > 0.06) & (even > 0.25)).to(grey.dtype)
    reach = 2 * round(window * margin / 2) + 1
    return blur(F.max_pool2d(text, reach, stride=1, padding=reach // 2), window / 4)


def text_size(rgb: Tensor) -> int:
    """About the height of a line in pixels, odd: what is looked at around each of them."""
    return max(9, min(rgb.shape[-2:]) // 40) | 1


def _mean_around(values: Tensor, window: int) -> Tensor:
    return F.avg_pool2d(values, window, stride=1, padding=window // 2, count_include_pad=False)
