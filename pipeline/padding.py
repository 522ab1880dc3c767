"""Padding at the right and bottom edge, so that any size meets a network's multiple; the caller crops it off again."""

import torch.nn.functional as F
from torch import Tensor


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """(B, C, H, W) -> the same with H and W raised to the next multiple, by reflection where the picture is large
    enough for it and by repeating the edge where it is not."""
    height, width = x.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    if not (bottom or right):
        return x
    mode = "reflect" if bottom < height and right < width else "replicate"
    return F.pad(x, (0, right, 0, bottom), mode=mode)
