"""Every loss of the prompt-fit and of the image-guided systems, as pure functions on tensors.

Responsible for the equations alone: features (or images) in, one differentiable scalar out.  It does not know which
encoder made the features, when a term is switched on, or which weight it gets in a fit; sampling the crops of the
patch loss is in `crops.py`, the feature networks are in `perceptual.py`.

Letters, as in the paper: `FY`, `FX`, `FZ` image features of the result, the content and the masked result, `FT` and
`Fsrc` text features of the prompt and the source prompt; each is `(D,)` or `(B, D)`.  `I = FY - FX` is the shift of
the image, `T = FT - Fsrc` the shift of the text.  Whatever the input dtype, the sums are taken in float32; float64
stays float64.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Layers = Tensor | Sequence[Tensor]
Scalar = Tensor | float

# (content, style, identity of pixels, identity of features), as found in the public code of each system.
IMAGE_STYLE_WEIGHTS = {"mamba_st_code": (7.0, 10.0, 70.0, 1.0), "samam_code": (7.0, 7.0, 70.0, 1.0)}

_SHORTEST = 1e-8  # no vector counts as shorter than this: keeps the cosine and its gradient finite at Y == X


def full_precision(tensor: Tensor) -> Tensor:
    """float32, or float64 if it is that already: half precision is too coarse for sums of squares."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _features(**named: Tensor) -> list[Tensor]:
    """The named features in full precision, after checking that they can be subtracted from each other."""
    shapes = {name: tuple(feature.shape) for name, feature in named.items()}
    if len({shape[-1:] for shape in shapes.values()}) != 1 or () in shapes.values():
        raise ValueError(
            f"got features of shapes {shapes}; wanted (D,) or (B, D) with one width D: use one encoder"
        )
    return [full_precision(feature) for feature in named.values()]


# Directional terms


def _cosine(shift: Tensor, direction: Tensor, delta: float = 0.0) -> Tensor:
    """Cosine along the last axis; `delta > 0` uses `sqrt(|shift|^2 + delta^2)`, which caps the gradient at 1/delta."""
    if delta > 0:
        length = (shift.square().sum(-1) + delta**2).sqrt()
    else:
        length = torch.linalg.vector_norm(shift, dim=-1).clamp(min=_SHORTEST)
    target = torch.linalg.vector_norm(direction, dim=-1).clamp(min=_SHORTEST)
    return (shift * direction).sum(-1) / (length * target)


def directional_cosine(
    FY: Tensor, FX: Tensor, FT: Tensor, Fsrc: Tensor, *, normalize: bool = True, delta: float = 0.0
) -> Tensor:
    """`cos(FY - FX, FT - Fsrc)`, one number per sample.

    `normalize` takes each feature to unit length before the differences.  `delta` is the guard against the singular
    gradient near `FY == FX`; at `delta = 0` the lengths are clamped at 1e-8 instead.
    """
    FY, FX, FT, Fsrc = _features(FY=FY, FX=FX, FT=FT, Fsrc=Fsrc)
    if normalize:
        FY, FX, FT, Fsrc = (F.normalize(feature, dim=-1) for feature in (FY, FX, FT, Fsrc))
    return _cosine(FY - FX, FT - Fsrc, delta)


def directional_loss(
    FY: Tensor, FX: Tensor, FT: Tensor, Fsrc: Tensor, *, normalize: bool = True, delta: float = 0.0
) -> Tensor:
    """Equation 2: `L_dir = mean(1 - cos(FY - FX, FT - Fsrc))`, in [0, 2]; exactly 1 at `FY == FX`."""
    return (1 - directional_cosine(FY, FX, FT, Fsrc, normalize=normalize, delta=delta)).mean()


def masked_directional_loss(
    FZ: Tensor,
    FX: Tensor | None = None,
    FT: Tensor | None = None,
    Fsrc: Tensor | None = None,
    *,
    FX_masked: Tensor | None = None,
    variant: Literal["directional", "same_mask", "ratio"] = "directional",
    delta: float = 0.0,
) -> Tensor:
    """Equation 3, the pull on the masked result Z, in three readings.

    - `directional`: `mean(1 - cos(FZ - FX, T))`, a strong style force;
    - `same_mask`: the same from the origin `FX_masked`, the content seen through the mask of Z, so that the shift
      which the holes themselves cause cancels (the origin may also be given as `FX`);
    - `ratio`: `mean(|FZ - FX| / |T|)` as printed, on the features as given; its minimum is Z = X, no style at all.
    """
    if variant not in ("directional", "same_mask", "ratio"):
        raise ValueError(f"got variant {variant!r}; wanted 'directional', 'same_mask' or 'ratio'")
    origin = FX_masked if variant == "same_mask" and FX_masked is not None else FX
    if origin is None:
        wanted = (
            "FX_masked, the features of the content under the same mask" if variant == "same_mask" else "FX"
        )
        raise ValueError(f"variant={variant!r} got no origin for the shift of FZ; pass {wanted}")
    if FT is None or Fsrc is None:
        raise ValueError("got no text direction; pass both FT (the prompt) and Fsrc (the source prompt)")
    if variant == "ratio":
        FZ, origin, FT, Fsrc = _features(FZ=FZ, FX=origin, FT=FT, Fsrc=Fsrc)
        return (_distance(FZ, origin) / _distance(FT, Fsrc).clamp(min=_SHORTEST)).mean()
    return directional_loss(FZ, origin, FT, Fsrc, delta=delta)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a - b, dim=-1)


def alpha_shift(FYprev: Tensor, FX: Tensor, alpha: float = 1.0, beta: float = 2.0) -> Tensor:
    """Equation 5: `alpha * (1 - exp(-beta * |FYprev - FX|))` per sample, a weight: no gradient passes through it."""
    FYprev, FX = _features(FYprev=FYprev.detach(), FX=FX.detach())
    return alpha * (1 - torch.exp(-beta * _distance(FYprev, FX)))


def second_order_loss(
    FYnew: Tensor,
    FYprev: Tensor,
    FX: Tensor,
    FT: Tensor,
    Fsrc: Tensor,
    alpha: float = 1.0,
    beta: float = 2.0,
    *,
    variant: Literal["aligned", "ratio", "elementwise"] = "aligned",
) -> Tensor:
    """Equation 4, on the step `S = FYnew - FYprev` since the snapshot, times `alpha_shift(FYprev, FX, alpha, beta)`.

    - `aligned`: `1 - cos(S, T)`, steers the step along the text (an accelerator, as the paper's Figure 3 has it);
    - `ratio`: `(|S| / |T|)^2`, the printed quotient read as one of norms (a brake);
    - `elementwise`: `sum((S / T)^2)`, the printed quotient literally; explodes where an element of T is near 0.

    Features are used as given.  The snapshot `FYprev` is a constant: gradient flows only through `FYnew`.
    """
    weight = alpha_shift(FYprev, FX, alpha, beta)
    FYnew, FYprev, FT, Fsrc = _features(FYnew=FYnew, FYprev=FYprev.detach(), FT=FT, Fsrc=Fsrc)
    step, direction = FYnew - FYprev, FT - Fsrc
    if variant == "aligned":
        term = 1 - _cosine(step, direction)
    elif variant == "ratio":
        term = step.square().sum(-1) / direction.square().sum(-1).clamp(min=_SHORTEST**2)
    elif variant == "elementwise":
        term = (step / direction).square().sum(-1)
    else:
        raise ValueError(f"got variant {variant!r}; wanted 'aligned', 'ratio' or 'elementwise'")
    return (weight * term).mean()


def style_loss(
    L_dir: Scalar, L_md: Scalar, L_so: Scalar, theta: float = 0.8, *, gate_on: Scalar | None = None
) -> Scalar:
    """Equation 6: `L_dir + L_md + [L_dir < theta] * L_so`; equality does not open the gate.

    `gate_on` is the unguarded L_dir, for the case that `L_dir` itself was computed with a guard `delta`.
    """
    gate_on = L_dir if gate_on is None else gate_on
    if not isinstance(gate_on, Tensor):
        return L_dir + L_md + L_so if gate_on < theta else L_dir + L_md
    return L_dir + L_md + torch.where(gate_on.detach() < theta, L_so, 0.0)


def total_loss(L_style: Scalar, L_lpips: Scalar, L_vgg: Scalar, w_style: float, w_content: float) -> Scalar:
    """Equation 7: `w_style * L_style + w_content * (L_lpips + L_vgg)`."""
    return w_style * L_style + w_content * (L_lpips + L_vgg)


def rejected_patch_losses(cosines: Tensor, tau: float = 0.7) -> Tensor:
    """CLIPstyler's threshold: `l_i = 1 - cos_i`, set to 0 below `tau`: that patch is stylised enough already."""
    losses = 1 - full_precision(cosines)
    return torch.where(losses < tau, torch.zeros_like(losses), losses)


def patch_directional_loss(cosines: Tensor, tau: float = 0.7) -> Tensor:
    """Mean of `rejected_patch_losses` over all patches, the rejected ones included; `cosines` from
    `directional_cosine` of the features of `crops.random_crops`."""
    return rejected_patch_losses(cosines, tau).mean()


# Masks


def patch_grid(height: int, width: int, patch: int) -> tuple[int, int]:
    """Rows and columns of patches that cover the image; a ragged edge makes a last, smaller patch."""
    return -(-height // patch), -(-width // patch)


def patch_mask(
    height: int,
    width: int,
    patch: int = 16,
    ratio: float = 0.5,
    *,
    permutation: Sequence[int] | Tensor | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """A keep mask `(height, width)` of 1 and 0 with exactly `floor(ratio * N)` of its N patches removed.

    The first patches of `permutation` (row-major indices) go; without one it is drawn from `generator`, which may
    live on the CPU whatever the `device` of the mask, so that a seed means the same mask everywhere.
    """
    if min(height, width, patch) < 1 or not 0 <= ratio <= 1:
        raise ValueError(
            f"got {height}x{width}, patch {patch}, ratio {ratio}; wanted sizes >= 1 and a ratio in [0, 1]"
        )
    rows, columns = patch_grid(height, width, patch)
    count = rows * columns
    if permutation is None:
        permutation = torch.randperm(
            count, generator=generator, device=generator.device if generator else "cpu"
        )
    permutation = torch.as_tensor(permutation).cpu()
    if not torch.equal(permutation.sort().values, torch.arange(count)):
        raise ValueError(f"got permutation {permutation.tolist()}; wanted each of 0..{count - 1} once")
    keep = torch.ones(count)
    keep[permutation[: math.floor(ratio * count)]] = 0
    keep = keep.view(rows, columns).repeat_interleave(patch, 0).repeat_interleave(patch, 1)
    return keep[:height, :width].to(device)


def apply_patch_mask(image: Tensor, keep: Tensor, fill: float = 0.0) -> Tensor:
    """`image` (..., H, W) with `fill` where `keep` is 0.  No gradient passes through a hole.

    The fill 0 is the mean colour of an encoder once its input is normalised, so mask after normalising.
    """
    return torch.where(keep > 0, image, fill)


# Feature-map terms


def _as_list(layers: Layers) -> list[Tensor]:
    return [layers] if isinstance(layers, Tensor) else list(layers)


def _paired(a: Layers, b: Layers) -> list[tuple[Tensor, Tensor]]:
    """The layers of both images as pairs of equal shape in full precision."""
    a, b = _as_list(a), _as_list(b)
    shapes = [[tuple(layer.shape) for layer in layers] for layers in (a, b)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"got layers of shapes {shapes[0]} and {shapes[1]}; wanted equal ones: use equal image sizes"
        )
    return [(full_precision(one), full_precision(other)) for one, other in zip(a, b, strict=True)]


def mean_std(feat: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Mean and `sqrt(unbiased variance + eps)` over the positions of `feat` (B, C, H, W); two tensors (B, C)."""
    if feat.dim() != 4:
        raise ValueError(
            f"got features of shape {tuple(feat.shape)}; wanted (B, C, H, W): add the batch in front"
        )
    positions = full_precision(feat).flatten(2)  # (B, C, H*W)
    if positions.shape[-1] < 2:
        raise ValueError(
            f"got features of shape {tuple(feat.shape)}; wanted at least 2 positions: use a larger image"
        )
    return positions.mean(-1), (positions.var(-1) + eps).sqrt()


def _standardised(feat: Tensor) -> Tensor:
    mean, std = mean_std(feat)
    return (feat - mean[..., None, None]) / std[..., None, None]


def content_loss(
    a: Layers, b: Layers, *, variant: Literal["normalised", "clipstyler", "sse"] = "normalised"
) -> Tensor:
    """Distance of two feature maps (B, C, H, W), or of two lists of them, summed over the layers.

    - `normalised`: mean squared error of the maps standardised per channel (SANet, StyTR2, SaMam, Mamba-ST); two
      unrelated maps give about 2 per layer;
    - `clipstyler`: plain mean squared error, the one that the fit's weights 9000 and 150 belong to;
    - `sse`: sum of squared errors as StyleMamba prints it; it grows with the resolution, so for ablations only.
    """
    pairs = _paired(a, b)
    if variant == "normalised":
        return sum(F.mse_loss(_standardised(one), _standardised(other)) for one, other in pairs)
    if variant == "clipstyler":
        return sum(F.mse_loss(one, other) for one, other in pairs)
    if variant == "sse":
        return sum((one - other).square().sum() for one, other in pairs)
    raise ValueError(f"got variant {variant!r}; wanted 'normalised', 'clipstyler' or 'sse'")


def mean_std_loss(a: Layers, b: Layers) -> Tensor:
    """AdaIN's style loss `MSE(means) + MSE(standard deviations)`, summed over the layers; map sizes may differ."""
    a, b = _as_list(a), _as_list(b)
    if len(a) != len(b):
        raise ValueError(f"got {len(a)} and {len(b)} layers; wanted the same layers of both images")
    sizes = [[tuple(layer.shape[:2]) for layer in layers] for layers in (a, b)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"got layers of (B, C) {sizes[0]} and {sizes[1]}; wanted equal ones")
    statistics = [(mean_std(one), mean_std(other)) for one, other in zip(a, b, strict=True)]
    return sum(F.mse_loss(ma, mb) + F.mse_loss(sa, sb) for (ma, sa), (mb, sb) in statistics)


def gram_matrix(feat: Tensor) -> Tensor:
    """`F F^T / (C*H*W)` of `feat` (B, C, H, W), as (B, C, C)."""
    _, channels, height, width = feat.shape
    positions = full_precision(feat).flatten(2)
    with torch.autocast(
        feat.device.type, enabled=False
    ):  # autocast would take the product back to half precision
        return positions @ positions.mT / (channels * height * width)


def identity_losses(
    Icc: Tensor, Ic: Tensor, Iss: Tensor, Is: Tensor, features: Callable[[Tensor], Sequence[Tensor]]
) -> tuple[Tensor, Tensor]:
    """What is lost when an image is stylised with itself: `Icc` from content `Ic`, `Iss` from style `Is`.

    `Lid1 = MSE(Icc, Ic) + MSE(Iss, Is)` on pixels, `Lid2 = sum over layers of MSE(f(Icc), f(Ic)) + MSE(f(Iss), f(Is))`
    where `features` gives the layers of an image.
    """
    pixels = content_loss([Icc, Iss], [Ic, Is], variant="clipstyler")
    with torch.no_grad():
        wanted = [*features(Ic), *features(Is)]
    return pixels, content_loss([*features(Icc), *features(Iss)], wanted, variant="clipstyler")


def image_style_total(
    Lc: Scalar,
    Ls: Scalar,
    Lid1: Scalar,
    Lid2: Scalar,
    weights: Sequence[float] = IMAGE_STYLE_WEIGHTS["samam_code"],
) -> Scalar:
    """Total of SaMam and Mamba-ST: `lc*Lc + ls*Ls + l1*Lid1 + l2*Lid2`; presets in `IMAGE_STYLE_WEIGHTS`."""
    lc, ls, l1, l2 = weights
    return lc * Lc + ls * Ls + l1 * Lid1 + l2 * Lid2


# Pixel terms


def total_variation(image: Tensor) -> Tensor:
    """Sum of the L2 norms (not squared, not averaged) of the horizontal, vertical and two diagonal differences of
    `image` (B, C, H, W)."""
    x = full_precision(image)
    differences = (
        x[..., :, :-1] - x[..., :, 1:],
        x[..., :-1, :] - x[..., 1:, :],
        x[..., 1:, :-1] - x[..., :-1, 1:],
        x[..., :-1, :-1] - x[..., 1:, 1:],
    )
    return sum(torch.linalg.vector_norm(difference) for difference in differences)


def range_penalty(image: Tensor) -> Tensor:
    """`mean((Y - clamp(Y, -1, 1))^2)`: stands in for a clamp, which would stop the gradient."""
    x = full_precision(image)
    return (x - x.clamp(-1, 1)).square().mean()
