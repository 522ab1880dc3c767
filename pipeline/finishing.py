"""The painted picture becomes the result: what is taken from the photo is put back, in the order that undoes nothing.

Responsible for that order. What each control does is in `controls.py`, `lut.py` and `masks.py`.
"""

import torch
from torch import Tensor

from .controls import enforce_structure, keep_colors, keep_fine_light, keep_palette, keep_shading
from .lut import apply_lut, fit_lut
from .masks import find_text, text_size
from .style_mixing import composite


def finish(
    painted: Tensor,
    content: Tensor,
    structure: float = 0.0,
    shading: float = 0.0,
    preserve_color: bool | str = False,
    tone_only: bool = False,
    protect_text: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    """painted, content: (B, 3, H, W) in [0, 1]. mask: (B, 1, H, W), 1 where to stylize."""
    result = painted
    if tone_only:
        pairs = zip(content.split(1), painted.split(1), strict=True)
        result = torch.cat([apply_lut(one, fit_lut(one, toned)) for one, toned in pairs])
    result = enforce_structure(result, content, structure)
    result = keep_shading(result, content, shading)
    if preserve_color:
        result = (keep_palette if preserve_color == "palette" else keep_colors)(result, content)
    if protect_text:
        # Every edge of it, on the ground that the style gives it: a patch of the photo would be seen as one.
        legible = keep_fine_light(result, content, text_size(content) / 2)
        result = torch.lerp(result, legible, find_text(content))
    return result if mask is None else composite(content, result, mask)
