"""How much people would like a picture, as a linear head on an image embedding guesses it.

Responsible for reading the heads of Simulacra's aesthetic models and for pairing one with the encoder it was trained
on, CLIP ViT-B/16.  Nothing is downloaded: the file and the encoder are the caller's.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from .metrics import aesthetic_linear


class AestheticRater:
    """`rater(images)`: (B, 3, H, W) in [0, 1] -> ratings (B,) from 1 to 10, higher is better.

    encoder: has `embed_images` and `name`, as in `metrics.score`; it must be the one the head was trained on.
    weight, bias: of the head, (D,) and a number.
    name: of head and encoder, for the report.
    """

    def __init__(self, encoder, weight: Tensor, bias: float, name: str) -> None:
        self.encoder, self.weight, self.bias, self.name = encoder, weight, bias, name

    @classmethod
    def from_file(cls, path: str | Path, encoder) -> "AestheticRater":
        """From a state dict with `linear.weight` (1, D) and `linear.bias` (1,); it is read without running any code."""
        path = Path(path)
        wanted = (
            "give a head of Simulacra's aesthetic models, such as sac_public_2022_06_29_vit_b_16_linear.pth"
        )
        if not path.is_file():
            raise FileNotFoundError(f"no aesthetic head at {path}; {wanted}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        shapes = {key: tuple(value.shape) for key, value in state.items()}
        weight, bias = state.get("linear.weight"), state.get("linear.bias")
        if weight is None or bias is None or weight.dim() != 2 or len(weight) != 1 or bias.numel() != 1:
            raise ValueError(
                f"{path.name} holds {shapes}; wanted linear.weight (1, D) and linear.bias (1,): {wanted}"
            )
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        return cls(encoder, weight[0].float(), float(bias), f"{path.stem}@{digest} on {encoder.name}")

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        embedding = self.encoder.embed_images(images)
        if embedding.shape[-1] != len(self.weight):
            raise ValueError(
                f"{self.encoder.name} gives {embedding.shape[-1]} numbers, {self.name} wants {len(self.weight)}: "
                "use the encoder that the head was trained on (CLIP ViT-B/16 for 512)"
            )
        return aesthetic_linear(embedding, self.weight.to(embedding), self.bias)
