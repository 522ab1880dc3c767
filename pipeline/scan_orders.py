"""The paths along which an image is read as a sequence of tokens.

Responsible for: the permutations and their inverses. Knows nothing of what runs along the paths (`mamba.py`).
Token `row * width + column` is the raster index of a pixel or patch.
"""

from functools import lru_cache

import torch
from torch import Tensor


def scan_orders(
    kind: str, height: int, width: int, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """The K paths of `kind` over a height x width grid, and their inverses: two long tensors (K, H*W).

    `tokens[orders[k]]` reads the tokens along path k, `read[inverses[k]]` puts them back. The kinds:
    raster (K=1), bidirectional (K=2: raster and its reverse), cross (K=4: rows, columns and the reverse of both)
    and zigzag (K=4: a boustrophedon from each corner, so that consecutive tokens are neighbours).

    The tensors are cached and shared by all callers: do not write to them. Raises ValueError for an unknown kind
    or an empty grid.
    """
    if kind not in _PATHS:
        raise ValueError(f"scan order {kind!r} is unknown; use one of {', '.join(_PATHS)}.")
    if height < 1 or width < 1:
        raise ValueError(
            f"the grid is {height} x {width}, wanted at least 1 x 1; pass the token grid's size."
        )
    return _cached_orders(kind, height, width, torch.device(device or "cpu"))


@lru_cache(maxsize=128)
def _cached_orders(kind: str, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    # Made inside somebody's inference mode they would be inference tensors, of no use for training ever after.
    with torch.inference_mode(False):
        grid = torch.arange(height * width, device="cpu").view(height, width)  # (H, W)
        orders = torch.stack([path.reshape(-1) for path in _PATHS[kind](grid)])  # (K, H*W)
        return orders.to(device), orders.argsort(dim=1).to(device)


def _raster(grid: Tensor) -> list[Tensor]:
    return [grid]


def _bidirectional(grid: Tensor) -> list[Tensor]:
    return [grid, grid.rot90(2)]


def _cross(grid: Tensor) -> list[Tensor]:
    return [grid, grid.T, grid.rot90(2), grid.T.rot90(2)]


def _zigzag(grid: Tensor) -> list[Tensor]:
    """From top left and bottom right along rows, from top right down and bottom left up along columns."""
    return [_boustrophedon(grid.rot90(quarter_turns)) for quarter_turns in (0, 2, 1, 3)]


def _boustrophedon(grid: Tensor) -> Tensor:
    grid = grid.clone()
    grid[1::2] = grid[1::2].flip(1)  # every second row runs backwards
    return grid


_PATHS = {"raster": _raster, "bidirectional": _bidirectional, "cross": _cross, "zigzag": _zigzag}
