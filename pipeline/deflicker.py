"""Films that do not flicker: each frame leans on the one before it, moved along with the picture.

Responsible for the blend of a frame with the frame before, and for stylizing a sequence of frames with it. Knows nothing
of files (`video.py`). A model sees each frame alone and paints the same frame the same way, always.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .optical_flow import optical_flow
from .temporal import warp

_TOLERANCE = (
    0.08  # a content that differs by this after the motion is something else: a cut, or what was hidden
)


class Deflicker:
    """`deflicker(content, stylized)` for one frame after the other, each (1, 3, H, W) in [0, 1].

    amount: 0 leaves each frame as it is, towards 1 it is more and more the frame before, carried along by the motion.
    """

    def __init__(self, amount: float) -> None:
        if not 0 <= amount < 1:
            raise ValueError(f"deflicker is {amount}, wanted a number from 0 to below 1.")
        self.amount = amount
        self._before: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def __call__(self, content: Tensor, stylized: Tensor) -> Tensor:
        steady = stylized
        if self.amount and self._before is not None and self._before[0].shape == content.shape:
            seen, shown = self._before
            flow = optical_flow(seen, content)
            difference = (warp(seen, flow) - content).abs().mean(1, keepdim=True)
            trust = self.amount * torch.exp(-(difference / _TOLERANCE).square())  # (1, 1, H, W)
            # lerp and not a sum of two parts: of equal frames it makes the same frame, to the bit
            steady = torch.lerp(stylized, _carried(shown, flow), trust)
        self._before = (content, steady)
        return steady


def _carried(frame: Tensor, flow: Tensor) -> Tensor:
    """`warp`, but bicubic: carried from frame to frame, strokes would blur away. What does not move stays to the bit."""
    if not flow.any():
        return frame
    height, width = frame.shape[-2:]
    rows = torch.arange(height, device=frame.device, dtype=frame.dtype).view(-1, 1) - flow[:, 0]
    columns = torch.arange(width, device=frame.device, dtype=frame.dtype) - flow[:, 1]
    places = torch.stack([2 * columns / (width - 1) - 1, 2 * rows / (height - 1) - 1], dim=-1)  # (1, H, W, 2)
    moved = F.grid_sample(frame, places, mode="bicubic", padding_mode="border", align_corners=True)
    return moved.clamp(0, 1)


def stylize_frames(
    paint: Callable[[Tensor], Tensor], frames: Iterable[Tensor], deflicker: float = 0.0
) -> Iterator[Tensor]:
    """Each frame (1, 3, H, W) in [0, 1] through `paint`, one at a time, so that a film of any length takes the memory of
    two frames. A frame equal to the one before it is not painted again."""
    smooth = Deflicker(deflicker)
    last = painted = None
    for frame in frames:
        if last is None or not torch.equal(frame, last):
            painted = paint(frame)
        last = frame
        yield smooth(frame, painted)
