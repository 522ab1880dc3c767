"""Running a model on more than memory holds: in smaller batches, then in the pipeline's tiles, which share the statistics of
the whole picture.

Knows nothing of pictures or models; `run` maps (B, C, H, W) to (B, C', s H, s W).
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .host import is_out_of_memory, release_memory

Run = Callable[[Tensor], Tensor]
_LARGEST_BATCH = 8  # more gains nothing, and the user cannot cancel in between
_TILE, _SMALLEST_TILE = 768, 192  # pixels


def run_in_batches(
    run: Run,
    batch: Tensor,
    *,
    tile: Callable[[int], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """`run(batch)`, in as large parts as memory holds. tile: makes `run` work in tiles of that side from then on, when a
    single one of the batch is too large; None where nothing can be cut. progress: called with the number that is done."""
    size, done = min(len(batch), _LARGEST_BATCH), []
    sides = iter(()) if tile is None else _halves(_TILE, _SMALLEST_TILE)
    while len(done) < len(batch):
        part, result = batch[len(done) : len(done) + size], None
        try:
            result = run(part)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            # below its traceback, which holds the tensors, is gone
        if result is not None:
            done.extend(result.split(1))
            if progress is not None:
                progress(len(done))
            continue
        release_memory()
        if size > 1:
            size //= 2
        elif (side := next(sides, None)) is not None:
            tile(side)
        else:
            even = "" if tile is None else f" even for tiles of {_SMALLEST_TILE} px"
            raise MemoryError(
                f"there is not enough memory{even}: close other programs, or make the picture smaller."
            )
    return torch.cat(done)


def _halves(largest: int, smallest: int) -> Iterator[int]:
    while largest >= smallest:
        yield largest
        largest //= 2
