"""How much of which style, and where: mixing directions, strength, masks.

Responsible for the three linear mixes a user asks for.  It does not know where the directions, latents and pictures
come from.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .losses import full_precision

MIXES = ("linear", "slerp")
_CONTRARY = -0.2  # below this cosine two prompts cancel more than they mix


def mix_directions(
    *directions: Tensor, weights: Sequence[float], mode: Literal["linear", "slerp"] = "linear"
) -> Tensor:
    """One direction of unit length from several, each (D,) or (B, D).

    - `linear`: `unit(sum_i w_i * unit(t_i))`; a negative weight points away from that direction;
    - `slerp`: along the great circle from t_1 to t_2 by `w_2 / (w_1 + w_2)`, from there towards t_3 by
      `w_3 / (w_1 + w_2 + w_3)`, and so on.

    A direction that is alone, because all other weights are 0, is returned exactly as given, or turned around by a
    weight below 0.  Warns when two of the mixed directions point apart (cosine below -0.2).
    """
    if mode not in MIXES:
        raise ValueError(f"got mode {mode!r}; wanted 'linear' or 'slerp'")
    if len(directions) != len(weights) or not directions:
        raise ValueError(
            f"got {len(directions)} directions and {len(weights)} weights; wanted one weight for each"
        )
    if len(widths := {direction.shape[-1] for direction in directions}) > 1:
        raise ValueError(
            f"got directions of the widths {sorted(widths)}; wanted all of one encoder: styles of different models do not mix"
        )
    if not all(math.isfinite(weight) for weight in weights):
        raise ValueError(f"got weights {list(weights)}; wanted finite numbers")
    if abs(sum(weights)) < 1e-8:
        raise ValueError(
            f"got weights {list(weights)} with the sum 0; wanted at least one that is not cancelled"
        )
    if mode == "slerp" and min(weights) < 0:
        raise ValueError(f"got weights {list(weights)}; mode='slerp' wants none below 0: use mode='linear'")
    mixed = [
        (direction, weight) for direction, weight in zip(directions, weights, strict=True) if weight != 0
    ]
    if len(mixed) == 1:
        ((direction, weight),) = mixed
        return direction if weight > 0 else -direction

    units = [F.normalize(full_precision(direction), dim=-1) for direction, _ in mixed]
    for index, unit in enumerate(units):
        for other in units[:index]:
            cosine = (unit * other).sum(-1).min().item()
            if cosine < _CONTRARY:
                warnings.warn(
                    f"two mixed styles point apart (cosine {cosine:.2f}) and will partly cancel; "
                    "expect a weak mix, or stylise with one after the other",
                    stacklevel=2,
                )
    if mode == "linear":
        total = sum(weight * unit for unit, (_, weight) in zip(units, mixed, strict=True))
    else:
        total, so_far = units[0], mixed[0][1]
        for unit, (_, weight) in zip(units[1:], mixed[1:], strict=True):
            so_far += weight
            total = _slerp(total, unit, weight / so_far)
    if torch.linalg.vector_norm(total, dim=-1).min() < 1e-6:
        raise ValueError(
            f"the directions cancel with weights {list(weights)}: leave one out or change its weight"
        )
    return F.normalize(total, dim=-1).to(directions[0].dtype)


def _slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """`(sin((1 - t) w) a + sin(t w) b) / sin(w)` between unit vectors at the angle w; 0 if they are opposite."""
    # Half the angle from the lengths of difference and sum: exact for near-parallel vectors, where acos is not.
    half = torch.atan2(
        torch.linalg.vector_norm(a - b, dim=-1, keepdim=True),
        torch.linalg.vector_norm(a + b, dim=-1, keepdim=True),
    )
    angle, length = 2 * half, torch.sin(2 * half)
    arc = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / length.clamp(min=1e-7)
    straight = (1 - t) * a + t * b
    return torch.where(length.abs() > 1e-6, arc, torch.where(angle < 1, straight, torch.zeros_like(a)))


def composite(X: Tensor, Y: Tensor, mask: Tensor) -> Tensor:
    """`mask * Y + (1 - mask) * X`, bit-identical to X where the mask is 0.

    X, Y: (..., C, H, W).  mask: (H, W), (B, H, W) or (B, 1, H, W) in [0, 1].
    """
    if mask.dim() == X.dim() - 1:
        mask = mask.unsqueeze(-3)
    mask = mask.to(X.dtype)
    return torch.where(mask == 0, X, mask * Y + (1 - mask) * X)


def interpolate_strength(z: Tensor, M: Tensor, strength: float) -> Tensor:
    """`z + strength * (M - z)`: exactly z at 0, exactly M at 1; above 1 it exaggerates."""
    return torch.lerp(
        z, M.to(z.dtype), strength
    )  # exact at both ends, which the formula is not in floating point
