"""Random crops seen from random angles, the views of CLIPstyler's patch loss.

Responsible for sampling them from an image, differentiably and repeatably.  It does not know the encoder that will
look at them, nor the loss: `losses.patch_directional_loss`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .losses import full_precision


def random_crops(
    image: Tensor,
    count: int,
    size: int,
    output_size: int,
    *,
    distortion: float = 0.5,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`count` square crops of each image, all of them tilted, as (B * count, C, output_size, output_size).

    image: (B, C, H, W), any value range; what falls outside a tilted crop becomes 0 in that range.
    size: side of a crop in pixels of `image`, at most its shorter side.
    distortion: each corner moves inward by up to this part of half the side, in both directions; 0 does not tilt.

    The crops of one image follow each other.  A CPU `generator` gives the same crops whatever the image's device.
    """
    batch, _, height, width = image.shape
    if not 1 <= size <= min(height, width):
        raise ValueError(
            f"got crops of {size} px from an image of {height}x{width}; wanted at most {min(height, width)}"
        )
    device = generator.device if generator else "cpu"
    places = torch.rand(batch * count, 2, generator=generator, device=device).tolist()
    tilts = torch.rand(batch * count, 4, 2, generator=generator, device=device)

    crops = []
    for index, (down, right) in enumerate(places):
        top, left = int(down * (height - size + 1)), int(right * (width - size + 1))
        crops.append(image[index // count, :, top : top + size, left : left + size])
    crops = full_precision(torch.stack(crops))  # (B*count, C, size, size)

    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
    moved = corners * (1 - distortion * tilts.double().cpu())  # (B*count, 4, 2)
    grid = _perspective_grid(_homography(moved, corners.expand_as(moved)), size)  # (B*count, size, size, 2)
    grid = grid.to(crops.dtype).to(crops.device)  # in this order: not every device knows float64
    tilted = F.grid_sample(crops, grid, align_corners=True, padding_mode="zeros")
    return F.interpolate(
        tilted, (output_size, output_size), mode="bilinear", antialias=True, align_corners=False
    )


def _homography(source: Tensor, target: Tensor) -> Tensor:
    """The matrices (N, 3, 3) of the perspective maps that take four `source` points (N, 4, 2) to `target` ones.

    With the last element fixed to 1, `u = (ax + by + c) / (gx + hy + 1)` and the same for v are linear in the other
    eight: two equations for each of the four points.
    """
    x, y = source.unbind(-1)  # (N, 4)
    u, v = target.unbind(-1)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    rows_u = torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], dim=-1)  # (N, 4, 8)
    rows_v = torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], dim=-1)
    solution = torch.linalg.solve(torch.cat([rows_u, rows_v], dim=1), torch.cat([u, v], dim=1))  # (N, 8)
    return torch.cat([solution, one[:, :1]], dim=1).view(-1, 3, 3)


def _perspective_grid(homography: Tensor, size: int) -> Tensor:
    """Where each pixel of a size x size view looks, for `grid_sample` with aligned corners: (N, size, size, 2)."""
    axis = torch.linspace(-1, 1, size, dtype=homography.dtype)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], dim=-1).view(1, -1, 3)  # (1, size*size, 3)
    looked_at = points @ homography.mT  # (N, size*size, 3)
    return (looked_at[..., :2] / looked_at[..., 2:]).view(-1, size, size, 2)
