"""Colour tables: the tone of a style without its texture, as one map from colour to colour that editors can load.

Responsible for fitting such a table to a picture and its stylized twin, applying it, and writing it as a `.cube` file.
Knows nothing of models. A table is (3, N, N, N): `table[:, b, g, r]` is what becomes of the colour (r, g, b) / (N - 1).
"""

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .atomic_write import atomic_write

SIZE = 33  # of the tables; what most editors expect
_COARSE = 9  # cells a side at which colours are averaged: a tone curve has no more detail than that
_PRIOR = 1e-3  # weight of the overall trend, against all pixels of the picture together
_SAMPLES = 2**18  # pixels that a table is fitted to, at most


def fit_lut(content: Tensor, stylized: Tensor) -> Tensor:
    """The smooth colour map that takes `content` nearest to `stylized`, both (1, 3, H, W) in [0, 1].

    Where the picture has colours it is what became of them on average; elsewhere it follows the overall trend.
    """
    before, after = (rgb[0].flatten(1).mT.float() for rgb in (content, stylized))  # (P, 3)
    stride = max(1, len(before) // _SAMPLES)
    before, after = before[::stride], after[::stride]

    # the trend: an affine map, by least squares that leave colours alone which the picture does not have
    ones = before.new_ones(len(before), 1)
    system = torch.cat([before, ones], dim=1)  # (P, 4)
    gram = system.mT @ system / len(system) + 1e-3 * torch.eye(4, device=system.device)
    target = system.mT @ (after - before) / len(system)
    trend = torch.linalg.solve(gram, target)  # (4, 3)

    # what is left, averaged over the cells around each colour
    residual = after - before - system @ trend
    cells = _COARSE - 1
    place = before * cells
    low = place.floor().clamp(max=cells - 1)
    share = place - low
    sums = before.new_zeros(_COARSE**3, 4)
    for corner in range(8):
        bits = before.new_tensor([corner & 1, corner >> 1 & 1, corner >> 2 & 1])
        weight = torch.where(bits.bool(), share, 1 - share).prod(1, keepdim=True)  # (P, 1)
        r, g, b = (low + bits).long().unbind(1)
        sums.index_add_(0, (b * _COARSE + g) * _COARSE + r, torch.cat([residual * weight, weight], dim=1))
    sums = sums.mT.view(1, 4, *[_COARSE] * 3) / len(before)
    for axis in (2, 3, 4):  # neighbours lend to each other, so that nothing bends sharply
        sums = _smooth(sums, axis)
    correction = sums[:, :3] / (sums[:, 3:] + _PRIOR)  # (1, 3, 9, 9, 9)

    correction = F.interpolate(correction, size=[SIZE] * 3, mode="trilinear", align_corners=True)[0]
    colors = identity_lut().to(correction)
    flat = colors.flatten(1).mT  # (N^3, 3)
    moved = flat + torch.cat([flat, flat.new_ones(len(flat), 1)], dim=1) @ trend
    return (moved.mT.view_as(colors) + correction).clamp(0, 1)


def identity_lut(size: int = SIZE) -> Tensor:
    axis = torch.linspace(0, 1, size)
    b, g, r = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.stack([r, g, b])


def apply_lut(rgb: Tensor, table: Tensor) -> Tensor:
    """(1, 3, H, W) in [0, 1] -> the same after the table, linear between its points."""
    places = rgb.permute(0, 2, 3, 1)[:, None] * 2 - 1  # (1, 1, H, W, 3): r, g, b are x, y, z
    looked_up = F.grid_sample(table[None].to(rgb), places, align_corners=True, padding_mode="border")
    return looked_up[:, :, 0].clamp(0, 1)


def write_cube(
    table: Tensor, path: str | os.PathLike, title: str = "StyleMamba", *, overwrite: bool = False
) -> None:
    """Writes a table as a `.cube` file, whole or not at all."""
    path = Path(path)
    if path.suffix.lower() != ".cube":
        raise ValueError(f"{path} ends in {path.suffix!r}, wanted a name that ends in .cube.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already: give another name, or overwrite=True to replace it.")
    with atomic_write(path) as part:
        part.write_text(cube_text(table, title), encoding="utf-8")


def cube_text(table: Tensor, title: str) -> str:
    """What a `.cube` file holds. Red runs fastest, as editors expect."""
    name = " ".join(title.replace('"', "'").split())
    lines = [f'TITLE "{name}"', f"LUT_3D_SIZE {table.shape[-1]}", "DOMAIN_MIN 0 0 0", "DOMAIN_MAX 1 1 1"]
    lines += [f"{r:.6f} {g:.6f} {b:.6f}" for r, g, b in table.flatten(1).mT.tolist()]
    return "\n".join(lines) + "\n"


def _smooth(grid: Tensor, axis: int) -> Tensor:
    """[1 2 1] / 4 along one axis, the border repeated."""
    size = grid.shape[axis]
    index = torch.arange(size, device=grid.device)
    before, after = (index - 1).clamp(min=0), (index + 1).clamp(max=size - 1)
    return grid / 2 + (grid.index_select(axis, before) + grid.index_select(axis, after)) / 4
