"""Running a model on more than memory holds: in smaller batches, then in overlapping tiles.

Knows nothing of pictures or models; `run` maps (B, C, H, W) to (B, C', s H, s W).
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .host import OutOfMemory, release_memory

Run = Callable[[Tensor], Tensor]
_LARGEST_BATCH = 8  # more gains nothing, and the user cannot cancel in between


def run_in_batches(
    run: Run,
    batch: Tensor,
    *,
    tile: int,
    smallest: int,
    in_tiles: Callable[[Tensor, int], Tensor] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """`run(batch)`, in as large parts as memory holds. tile, smallest: sides of the tiles to try, when a single one of the
    batch is too large. in_tiles: how to run in tiles, where `run_in_tiles` is not it. progress: called with the number that
    is done."""
    in_tiles = in_tiles or (lambda part, side: run_in_tiles(run, part, side))
    size, side, done = min(len(batch), _LARGEST_BATCH), None, []
    sides = _halves(tile, smallest)
    while len(done) < len(batch):
        part, result = batch[len(done) : len(done) + size], None
        try:
            result = run(part) if side is None else in_tiles(part, side)
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
    """Tiles of `side` that know nothing of each other, for what has no statistics of the whole."""
    from ..pipeline.tiles import run_in_tiles

    return run_in_tiles(run, whole, side, halo=side // 8)
