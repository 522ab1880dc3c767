"""Motion between two frames: where every pixel came from, by the method of Lucas and Kanade from coarse to fine.

Responsible for the flow alone. What is done with it is in `deflicker.py`; the convention is that of `temporal.warp`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .controls import blur, luminance
from .temporal import warp

_SMALLEST = 16  # pixels of the shorter side at the coarsest level
_STEPS = 3  # at each level
_WINDOW = 3.0  # deviation of the neighbourhood that is taken to move alike, in pixels of a level
_STIFFNESS = 1e-4  # holds still where there is nothing to see


def optical_flow(before: Tensor, after: Tensor, side: int = 320) -> Tensor:
    """Flow (B, 2, H, W) in pixels, (rows, columns), such that `warp(before, flow)` is about `after`; both (B, 3, H, W).

    Frames that are equal have a flow of exactly 0. side: the frames are looked at reduced to it, which is as exact for
    what a film's motion needs and many times faster.
    """
    height, width = before.shape[-2:]
    scale = min(1.0, side / max(height, width))
    size = [max(8, round(scale * length)) for length in (height, width)]
    grey = [
        F.interpolate(luminance(frame), size=size, mode="bilinear", antialias=True)
        for frame in (before, after)
    ]
    pyramid = [grey]
    while min(pyramid[-1][0].shape[-2:]) >= 2 * _SMALLEST:
        pyramid.append([F.avg_pool2d(level, 2) for level in pyramid[-1]])

    flow = grey[0].new_zeros(len(before), 2, *pyramid[-1][0].shape[-2:])
    for first, second in reversed(pyramid):
        flow = _resized(flow, first.shape[-2:])
        for _ in range(_STEPS):
            flow = flow + _step(warp(first, flow), second)
    return _resized(flow, (height, width))


def _step(warped: Tensor, target: Tensor) -> Tensor:
    """The small motion that takes `warped` to `target`: least squares over each pixel's neighbourhood."""
    down = _central(warped, -2)
    along = _central(warped, -1)
    missing = warped - target  # = down * d0 + along * d1 for a motion (d0, d1)
    a, b, c, p, q = (
        blur(product, _WINDOW)
        for product in (down * down, down * along, along * along, down * missing, along * missing)
    )
    a, c = a + _STIFFNESS, c + _STIFFNESS
    determinant = a * c - b * b
    step = torch.cat([c * p - b * q, a * q - b * p], dim=1) / determinant
    return step.clamp(-1, 1)  # further than the gradient can see is a guess


def _central(image: Tensor, axis: int) -> Tensor:
    """Differences over two pixels, halved; over one at the border."""
    return torch.gradient(image, dim=axis)[0]


def _resized(flow: Tensor, size: tuple[int, int]) -> Tensor:
    if flow.shape[-2:] == torch.Size(size):
        return flow
    factors = flow.new_tensor([size[0] / flow.shape[-2], size[1] / flow.shape[-1]]).view(2, 1, 1)
    return F.interpolate(flow, size=size, mode="bilinear", align_corners=False) * factors
