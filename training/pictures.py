"""Training pictures in memory: decoded once, kept as bytes, handed out as random crops; and how far two lie apart."""

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


class Pictures:
    """Pictures of some folders, the short side reduced to `side`. `crops` draws from them, flipped half of the time."""

    def __init__(self, files: list[Path], side: int, limit: int | None = None, seed: int = 0) -> None:
        chosen = random.Random(seed).sample(files, min(limit or len(files), len(files)))
        self.files = sorted(chosen)
        self.images = [read(file, side) for file in self.files]

    def crops(self, count: int, size: int, rng: random.Random) -> Tensor:
        """-> (count, 3, size, size) in [0, 1]."""
        batch = []
        for _ in range(count):
            image = rng.choice(self.images)
            top = rng.randint(0, image.shape[-2] - size)
            left = rng.randint(0, image.shape[-1] - size)
            crop = image[:, top : top + size, left : left + size]
            batch.append(crop.flip(-1) if rng.random() < 0.5 else crop)
        return torch.stack(batch).float() / 255


def read(file: Path, side: int) -> Tensor:
    """-> (3, H, W) uint8, the short side `side` px."""
    image = Image.open(file).convert("RGB")
    scale = side / min(image.size)
    size = [max(side, round(s * scale)) for s in image.size]
    return torch.from_numpy(np.array(image.resize(size, Image.LANCZOS))).permute(2, 0, 1).contiguous()


def read_unit(file: Path, side: int, device: str | torch.device = "cpu") -> Tensor:
    """-> (1, 3, H, W) in [0, 1], the short side `side` px."""
    return read(file, side)[None].to(device).float() / 255


def picture_distance(a: Tensor, b: Tensor) -> Tensor:
    """L1 of the pixels, of their differences to the next pixel (edges), and of 8 x 8 means (colour): (B, 3, H, W) twice -> (B,)."""
    gap = a - b
    terms = ((1, gap), (0.5, gap.diff(dim=-1)), (0.5, gap.diff(dim=-2)), (1, F.avg_pool2d(gap, 8)))
    return sum(factor * term.abs().mean((1, 2, 3)) for factor, term in terms)
