"""Running a model on more than memory holds: in smaller batches, then in overlapping tiles.

Knows nothing of pictures or models; `run` maps (B, C, H, W) to (B, C', s H, s W).
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .host import OutOfMemory, release_memory

Run = Callable[[Tensor], Tensor]
_LARGEST_BATCH = 8  # more gains nothing, and the user cannot cancel in between


def run_in_batches(
    run: Run, batch: Tensor, *, tile: int, smallest: int, progress: Callable[[int], None] | None = None
) -> Tensor:
    """`run(batch)`, in as large parts as memory holds. tile, smallest: sides of the tiles to try, when a single one of the
    batch is too large. progress: called with the number that is done."""
    size, side, done = min(len(batch), _LARGEST_BATCH), None, []
    sides = _halves(tile, smallest)
    while len(done) < len(batch):
        part, result = batch[len(done) : len(done) + size], None
        try:
            result = run(part) if side is None else run_in_tiles(run, part, side)
        except OutOfMemory:
            pass  # out here its traceback, which holds the tensors, is gone
        if result is not None:
            done.extend(result.split(1))
            if progress is not None:
                progress(len(done))
            continue
        release_memory()
        if size > 1:
            size //= 2
        elif (side := next(sides, None)) is None:
            raise MemoryError(
                f"there is not enough memory even for tiles of {smallest}: close other programs, or make the picture smaller."
            )
    return torch.cat(done)


def _halves(largest: int, smallest: int) -> Iterator[int]:
    while largest >= smallest:
        yield largest
        largest //= 2


def run_in_tiles(run: Run, whole: Tensor, side: int) -> Tensor:
    """Tiles of `side`, blended over the quarter by which they overlap."""
    overlap = side // 4
    total = weight = None
    for top, left in _corners(*whole.shape[-2:], side, side - overlap):
        result = run(whole[..., top : top + side, left : left + side])
        if total is None:
            scale = result.shape[-1] // min(side, whole.shape[-1])
            size = [scale * length for length in whole.shape[-2:]]
            total = result.new_zeros(*result.shape[:2], *size)
            weight = result.new_zeros(1, 1, *size)
        height, width = result.shape[-2:]
        ramps = (_ramp(length, scale * overlap).to(result) for length in (height, width))
        shape = torch.outer(*ramps)
        window = (..., slice(scale * top, scale * top + height), slice(scale * left, scale * left + width))
        total[window] += result * shape
        weight[window] += shape
    return total / weight


def _corners(height: int, width: int, side: int, step: int) -> Iterator[tuple[int, int]]:
    def starts(length: int) -> list[int]:
        count = max(1, math.ceil((length - side) / step) + 1)
        return [min(i * step, max(0, length - side)) for i in range(count)]

    return ((top, left) for top in starts(height) for left in starts(width))


def _ramp(length: int, overlap: int) -> Tensor:
    """Rises over the overlap at one end and falls at the other; never 0, so that every pixel counts somewhere."""
    position = torch.arange(1, length + 1, dtype=torch.float32)
    return torch.minimum(position, position.flip(0)).clamp(max=overlap + 1) / (overlap + 1)
