"""Pictures in and out: every form a caller may hold becomes an RGB tensor in [0, 1], and goes back the same way.

Responsible for: reading PIL, numpy and torch images, grey, alpha, palettes and 16 bits, and handing results back in
the form asked for. Knows nothing of models. Sizes are kept; nothing is resized here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Picture = Image.Image | np.ndarray | Tensor
MIN_SIDE = 16
# Resampling overshoots by a little; more than this is another range (0..255 or -1..1), not an overshoot.
RANGE_SLACK = 0.05


@dataclass
class Content:
    """One picture: `rgb` (1, 3, H, W) float32 in [0, 1] and, where it had one, `alpha` (1, 1, H, W)."""

    rgb: Tensor
    alpha: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.rgb.shape[-2], self.rgb.shape[-1]


def read_images(image: Picture | Sequence[Picture]) -> list[Content]:
    """One picture, a batch `[B, C, H, W]` / `[B, H, W, C]` or a list of either, of any sizes -> one `Content` each."""
    if isinstance(image, (list, tuple)):
        contents = [content for item in image for content in read_images(item)]
    elif isinstance(image, Image.Image):
        contents = [_from_pil(image)]
    elif isinstance(image, np.ndarray):
        contents = _from_numpy(image)
    elif isinstance(image, Tensor):
        contents = _from_torch(image)
    else:
        raise TypeError(
            f"image is a {type(image).__name__}, wanted a PIL image, a numpy array, a torch tensor or a list of these."
        )
    if not contents:
        raise ValueError("image is an empty batch, wanted at least one picture.")
    return contents


def read_mask(mask: Picture | Sequence[Picture], sizes: Sequence[tuple[int, int]], device) -> list[Tensor]:
    """Masks (1 = stylize, 0 = keep) -> one (1, 1, H, W) in [0, 1] per picture; one mask serves all, and a mask of
    another size is resized to its picture."""
    if isinstance(mask, (list, tuple)):
        masks = [m for item in mask for m in _read_one_mask(item)]
    else:
        masks = _read_one_mask(mask)
    if len(masks) == 1:
        masks = masks * len(sizes)
    if len(masks) != len(sizes):
        raise ValueError(
            f"got {len(masks)} masks for {len(sizes)} pictures, wanted one for all or one for each."
        )
    resized = []
    for one, size in zip(masks, sizes, strict=True):
        _require_range(one, "mask_image")
        one = one.clamp(0, 1)
        if one.shape[-2:] != size:
            one = F.interpolate(one, size=size, mode="bilinear", align_corners=False)
        resized.append(one.to(device))
    return resized


def to_pil(rgb: Tensor, alpha: Tensor | None = None) -> Image.Image:
    """(1, 3, H, W) in [0, 1] and alpha (1, 1, H, W) -> an 8 bit RGB or RGBA picture."""
    channels = rgb if alpha is None else torch.cat([rgb, alpha.to(rgb)], dim=1)
    pixels = (
        (channels[0].float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    )  # (H, W, 3 or 4)
    return Image.fromarray(pixels)


def collect(results: list[Content], output_type: str) -> list[Image.Image] | np.ndarray | Tensor | list:
    """Results in the caller's form: PIL list, one array (B, H, W, C), one tensor (B, C, H, W); a list of arrays or
    tensors where sizes or channels differ and no single batch can hold them."""
    if output_type == "pil":
        return [to_pil(r.rgb, r.alpha) for r in results]
    tensors = [r.rgb if r.alpha is None else torch.cat([r.rgb, r.alpha.to(r.rgb)], dim=1) for r in results]
    tensors = [t.float() for t in tensors]
    if output_type == "np":
        stacked = stack([t.permute(0, 2, 3, 1) for t in tensors])  # (B, H, W, C)
        return [t.cpu().numpy() for t in stacked] if isinstance(stacked, list) else stacked.cpu().numpy()
    return stack(tensors)


def stack(tensors: list[Tensor]) -> Tensor | list[Tensor]:
    """Batches of one -> one batch, or a list without the batch axis where shapes differ."""
    return torch.cat(tensors) if len({t.shape for t in tensors}) == 1 else [t[0] for t in tensors]


def _from_pil(image: Image.Image) -> Content:
    if min(image.size) == 0:
        _require_size(torch.empty(1, 3, image.height, image.width))
    grey = _deep_grey(image)
    if grey is not None:
        return _content(grey)
    has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    pixels = np.array(image.convert("RGBA" if has_alpha else "RGB"))
    return _content(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)


def _deep_grey(image: Image.Image) -> Tensor | None:
    """(1, 1, H, W) of a grey picture of more than 8 bits: PIL's own conversions would clip it to 255."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return None
    grey = torch.from_numpy(np.array(image, dtype=np.float32))[None, None]
    if image.mode != "F":
        return grey / 65535
    return grey / (
        1 if grey.amax() <= 1 else 255
    )  # both are usual, and a count that ends at 1 would be black


def _from_numpy(image: np.ndarray) -> list[Content]:
    shape = image.shape
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim == 3:
        image = image[None]
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"image is an array of shape {shape}, wanted (H, W), (H, W, C) or (B, H, W, C) with C = 1, 3 or 4."
        )
    return _from_batch(_own_tensor(image).permute(0, 3, 1, 2))


def _from_torch(image: Tensor) -> list[Content]:
    shape = tuple(image.shape)
    if image.ndim == 2:
        image = image[None]
    if image.ndim == 3:
        image = image[None]
    if image.ndim != 4 or image.shape[1] not in (1, 3, 4):
        raise ValueError(
            f"image is a tensor of shape {shape}, wanted (B, C, H, W) or (C, H, W) with C = 1, 3 or 4 in "
            "[0, 1]; move channels first with permute, and give encoded images as latents=."
        )
    return _from_batch(image)


def _from_batch(batch: Tensor) -> list[Content]:
    batch = _unit_range(batch)
    if not batch.is_floating_point():
        raise ValueError(f"image has dtype {batch.dtype}, wanted uint8 in 0..255, uint16 or floats in 0..1.")
    return [_content(image) for image in batch.float().split(1)] if len(batch) else []


def _own_tensor(array: np.ndarray) -> Tensor:
    """A copy in the machine's byte order: torch takes no other, and would warn about read-only arrays."""
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def _unit_range(values: Tensor) -> Tensor:
    """Counts of 8 or 16 bits -> floats in [0, 1]; anything else comes back as it is."""
    if values.dtype == torch.uint8:
        return values / 255
    return values.float() / 65535 if values.dtype == torch.uint16 else values


def _content(channels: Tensor) -> Content:
    _require_size(channels)
    _require_range(channels, "image")
    channels = channels.clamp(0, 1)
    alpha = channels[:, 3:4] if channels.shape[1] == 4 else None
    rgb = channels[:, :1].expand(-1, 3, -1, -1) if channels.shape[1] == 1 else channels[:, :3]
    # Contiguous: another layout in memory takes other kernels, and a fit on a PIL picture would not be that on its tensor.
    return Content(rgb.contiguous(), alpha)


def _read_one_mask(mask: Picture) -> list[Tensor]:
    if isinstance(mask, Image.Image):
        if mask.mode == "I" and mask.getextrema()[1] <= 255:  # 8 bits in a wide mode: no mask is this dark
            mask = mask.convert("L")
        grey = _deep_grey(mask)
        mask = np.array(mask.convert("L")) if grey is None else grey
    if not isinstance(mask, (np.ndarray, Tensor)):
        raise TypeError(
            f"mask_image is a {type(mask).__name__}, wanted a PIL image, a numpy array or a torch tensor."
        )
    shape = tuple(mask.shape)
    if isinstance(mask, np.ndarray):
        channels_last = mask.ndim in (3, 4) and mask.shape[-1] in (1, 3, 4)
        mask = _own_tensor(mask)
        mask = mask.movedim(-1, -3) if channels_last else mask
        mask = mask[None] if channels_last and mask.ndim == 3 else mask
    if not mask.is_floating_point() and mask.float().amax() <= 1:  # 0 and 1 are no counts of bits
        mask = mask.float()
    mask = _unit_range(mask).float()
    if mask.ndim == 2:
        mask = mask[None]
    if mask.ndim == 3:
        mask = mask[:, None]  # (B, 1, H, W)
    if mask.ndim != 4 or mask.shape[1] != 1 or mask.numel() == 0:
        raise ValueError(
            f"mask_image has shape {shape}, wanted (H, W), (B, H, W) or (B, 1, H, W): one channel, no colours."
        )
    return list(mask.split(1))


def _require_size(channels: Tensor) -> None:
    height, width = channels.shape[-2:]
    if min(height, width) < MIN_SIDE:
        raise ValueError(
            f"image is {width} x {height} px, wanted at least {MIN_SIDE} px on each side: enlarge it before."
        )


def _require_range(values: Tensor, name: str) -> None:
    low, high = values.amin().item(), values.amax().item()  # NaN if one value is
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} holds NaN or infinite values, wanted finite values in [0, 1].")
    if low < -RANGE_SLACK or high > 1 + RANGE_SLACK:
        raise ValueError(
            f"{name} has values in [{low:.3g}, {high:.3g}], wanted [0, 1]: for [-1, 1] pass {name} / 2 + 0.5, for "
            f"0..255 pass uint8 or {name} / 255."
        )
