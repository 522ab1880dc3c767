"""Losses that keep a stylised film calm.

Responsible for comparing neighbouring frames; it does not know how they were stylised, nor where a flow comes from.
Frames are (C, H, W) or (B, C, H, W): `c` of the content, `y` of the result, numbered in time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .losses import full_precision


def frame_difference_loss(c0: Tensor, c1: Tensor, y0: Tensor, y1: Tensor) -> Tensor:
    """`mean(((y1 - y0) - (c1 - c0))^2)`: the result may change as much as the content does, and no more."""
    c0, c1, y0, y1 = map(full_precision, (c0, c1, y0, y1))
    return F.mse_loss(y1 - y0, c1 - c0)


def second_order_temporal_loss(y0: Tensor, y1: Tensor, y2: Tensor) -> Tensor:
    """`mean((y2 - 2*y1 + y0)^2)`: changes, but no jerks."""
    y0, y1, y2 = map(full_precision, (y0, y1, y2))
    return (y2 - 2 * y1 + y0).square().mean()


def warp(frame: Tensor, flow: Tensor) -> Tensor:
    """The frame moved along `flow`: `out[i, j] = frame[i - flow[0], j - flow[1]]`, bilinear, border repeated.

    flow: (..., 2, H, W), or (2,) for one motion of the whole frame; in pixels, (rows, columns), from this frame to
    the next, on the grid of the next.  A whole number of pixels moves the values exactly.
    """
    channels, height, width = frame.shape[-3:]
    frames = frame.reshape(-1, channels, height * width)  # (B, C, H*W)
    flow = flow.to(frame.dtype)
    flow = (flow.view(2, 1, 1) if flow.dim() == 1 else flow).expand(*frame.shape[:-3], 2, height, width)
    flow = flow.reshape(-1, 2, height, width)
    rows = torch.arange(height, device=frame.device, dtype=frame.dtype).view(-1, 1)
    columns = torch.arange(width, device=frame.device, dtype=frame.dtype)
    y = (rows - flow[:, 0]).clamp(0, height - 1)  # (B, H, W)
    x = (columns - flow[:, 1]).clamp(0, width - 1)

    def pixels(row: Tensor, column: Tensor) -> Tensor:
        # whole numbers: of a frame of 17 megapixels, the places are more than a float can tell apart
        index = (row.long() * width + column.long()).flatten(1)  # (B, H*W)
        return frames.gather(2, index[:, None].expand(-1, channels, -1)).view(-1, channels, height, width)

    top, left = y.floor(), x.floor()
    bottom, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    down, along = (y - top)[:, None], (x - left)[:, None]  # (B, 1, H, W)
    upper = (1 - along) * pixels(top, left) + along * pixels(top, right)
    lower = (1 - along) * pixels(bottom, left) + along * pixels(bottom, right)
    return ((1 - down) * upper + down * lower).view_as(frame)


def warp_loss(y0: Tensor, y1: Tensor, mask: Tensor, flow: Tensor) -> Tensor:
    """`sum(mask * (y1 - warp(y0, flow))^2) / (C * sum(mask))`; 0 when the mask is empty.

    mask: (H, W), or (B, 1, H, W): 1 where the flow can be trusted, 0 where something was uncovered.
    """
    y0, y1, mask = map(full_precision, (y0, y1, mask))
    error = mask * (y1 - warp(y0, flow)).square()
    return error.sum() / mask.expand_as(error).sum().clamp(min=1e-8)
