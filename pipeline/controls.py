"""What a user may keep of the photo: its colours, structure and shading, and the size of the strokes. Pictures in [0, 1].

Responsible for the controls that act on pictures before and after the model. Knows nothing of models. Strength acts
on latents and weights instead (`style_mixing.py`, `style_decoder.py`); where a style goes is in `masks.py`.
"""

import math
import numbers

import torch
import torch.nn.functional as F
from torch import Tensor

# Strokes are as large as in a picture of this side, whatever the size of the picture: the size that styles are fitted at.
REFERENCE_SIDE = 512
COLORS = (False, True, "luminance", "palette")  # values of preserve_color
RANGES = {
    "strength": (0.0, 1.5),
    "structure": (0.0, 1.0),
    "stroke_scale": (0.1, 10.0),
    "shading": (0.0, 1.0),
    "feather": (0.0, 1000.0),
}
_GAIN = 5.0  # of a palette: a blank wall has hardly any colours to spread, only noise
_LUMA = (0.299, 0.587, 0.114)  # BT.601


def check_controls(preserve_color: bool | str, **controls: float) -> None:
    """Of every pipeline alike. controls: some of RANGES, by name."""
    for name, value in controls.items():
        low, high = RANGES[name]
        if not isinstance(value, numbers.Real) or not low <= value <= high:
            raise ValueError(f"{name} is {value!r}, wanted a number from {low:g} to {high:g}.")
    if preserve_color not in COLORS:
        raise ValueError(
            f"preserve_color is {preserve_color!r}, wanted False, True, 'luminance' or 'palette'."
        )


def luminance(rgb: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W)."""
    return torch.einsum("bchw,c->bhw", rgb, rgb.new_tensor(_LUMA))[:, None]


def keep_colors(stylized: Tensor, content: Tensor) -> Tensor:
    """The luminance of `stylized` with the chroma of `content`."""
    return (content + luminance(stylized) - luminance(content)).clamp(0, 1)


def palette(rgb: Tensor) -> tuple[Tensor, Tensor]:
    """What colours a picture is made of, wherever they are: their mean (B, 3) and the root of their covariance (B, 3, 3)."""
    pixels = rgb.flatten(2).float()  # (B, 3, H*W)
    mean = pixels.mean(-1)
    with torch.autocast(rgb.device.type, enabled=False):  # it would round the covariance to half precision
        return mean, _power(_covariance(pixels - mean[..., None]), 0.5).to(pixels)


def in_palette(rgb: Tensor, mean: Tensor, root: Tensor) -> Tensor:
    """`rgb` in the colours of a `palette`, by the linear map that moves colours least (optimal transport between two normal
    distributions). Not clamped."""
    with torch.no_grad():  # gradients pass through the map alone: how it is found has none for grey pictures
        own_mean, own_root = palette(rgb)
        own_root, root = own_root.cpu().double(), root.cpu().double()
        inverse = _power(own_root, -1)
        move = inverse @ _power(own_root @ root @ root @ own_root, 0.5) @ inverse  # (B, 3, 3)
        move = _power(move, 1, largest=_GAIN).to(own_mean)
    with torch.autocast(rgb.device.type, enabled=False):
        matched = move @ (rgb.flatten(2).float() - own_mean[..., None]) + mean[..., None].float()
    return matched.to(rgb.dtype).view_as(rgb)


def keep_palette(stylized: Tensor, content: Tensor) -> Tensor:
    """`stylized` in the colours that `content` is made of, wherever they are."""
    return in_palette(stylized, *palette(content)).clamp(0, 1)


def enforce_structure(stylized: Tensor, content: Tensor, structure: float) -> Tensor:
    """Gives `stylized` the light of `content` in everything finer than `structure` times the width of a stroke.

    At 0 that is nothing, at 1 every edge and line; broad light and all colours stay those of the style. Fine things first:
    they make a face legible and are hardly part of a style, so they cost it least.
    """
    if structure == 0:
        return stylized
    return keep_fine_light(stylized, content, structure * _stroke_width(content))


def keep_fine_light(stylized: Tensor, content: Tensor, sigma: float) -> Tensor:
    """`stylized` with the light of `content` in what a blur over `sigma` pixels removes."""
    gap = luminance(content) - luminance(stylized)
    return (stylized + gap - blur(gap, sigma)).clamp(0, 1)


def keep_shading(stylized: Tensor, content: Tensor, shading: float) -> Tensor:
    """Moves the broad light and dark of `stylized` towards those of `content`: the folds of a garment stay where they are,
    under a new pattern. The other half of `enforce_structure`: what a blur over the width of a stroke leaves. Colours are
    scaled, not shifted, as light does it."""
    if shading == 0:
        return stylized
    sigma = _stroke_width(content)
    ours, theirs = (blur(luminance(rgb), sigma) for rgb in (stylized, content))
    return (stylized * ((theirs + 0.02) / (ours + 0.02)).pow(shading)).clamp(0, 1)


def _stroke_width(rgb: Tensor) -> float:
    """Pixels: 1/64 of the picture. Not less than 1/64 of `REFERENCE_SIDE`, as strokes do not become finer in smaller pictures."""
    return max(REFERENCE_SIDE, min(rgb.shape[-2:])) / 64


def stroke_size(height: int, width: int, stroke_scale: float, smallest: int) -> tuple[int, int]:
    """Size at which the strokes are painted: seen at full size again, those of a picture half as large are twice as large.

    At 1 the longer side is `REFERENCE_SIDE`, so that one photo has strokes of the same relative size at every resolution;
    smaller pictures are not enlarged for it.
    """
    scale = min(1.0, REFERENCE_SIDE / max(height, width)) / stroke_scale
    return tuple(max(smallest, round(side * scale)) for side in (height, width))


def stroke_sizes(
    size: tuple[int, int], stroke_scale: float, smallest: int, full: tuple[int, int]
) -> list[tuple[int, int]]:
    """Where to paint: at the size that makes the strokes as large as wanted and, where that loses detail, at full size too."""
    broad = stroke_size(*size, stroke_scale, smallest)
    loses_detail = broad[0] < full[0] and broad[1] < full[1]
    return [broad, full] if loses_detail else [broad]


def add_fine_strokes(broad: Tensor, fine: Tensor) -> Tensor:
    """`broad`, painted small, enlarged to the size of `fine`, with what it cannot hold of that: reduced again it is what it
    was. May write over `fine`."""
    size = fine.shape[-2:]
    missing = fine.sub_(resize(resize(fine, broad.shape[-2:]), size))
    return missing.add_(resize(broad, size)).clamp_(0, 1)


def resize(rgb: Tensor, size: tuple[int, int]) -> Tensor:
    if rgb.shape[-2:] == torch.Size(size):
        return rgb
    return F.interpolate(rgb, size=size, mode="bicubic", antialias=True).clamp(0, 1)


def blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian over (B, C, H, W), the border repeated. A sum of shifted pictures: with few channels a convolution takes up to
    thirty times as long on a CPU."""
    radius = math.ceil(3 * sigma)
    taps = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(radius + 1)]
    whole = taps[0] + 2 * sum(taps[1:])
    for axis, margin in ((-1, (radius, radius, 0, 0)), (-2, (0, 0, radius, radius))):
        padded, length = F.pad(image, margin, mode="replicate"), image.shape[axis]
        image = padded.narrow(axis, radius, length) * (taps[0] / whole)
        for i, tap in enumerate(taps[1:], 1):
            for begin in (radius - i, radius + i):
                image.add_(padded.narrow(axis, begin, length), alpha=tap / whole)
    return image


def _covariance(centred: Tensor) -> Tensor:
    """(B, 3, P) -> (B, 3, 3) in double precision, which not every device has, with a little variance in every direction:
    grey pictures have none in two of three."""
    covariance = (centred @ centred.mT / centred.shape[-1]).cpu().double()
    return covariance + 1e-5 * torch.eye(3, dtype=torch.float64)


def _power(matrix: Tensor, exponent: float, largest: float = math.inf) -> Tensor:
    """Of a symmetric positive matrix (B, 3, 3); no eigenvalue of the result is above `largest`."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=1e-12).pow(exponent).clamp(max=largest)[..., None, :] @ vectors.mT
