"""The image tower of the bundled model: a picture's style as one vector, in the space of the text tower.

Responsible for: the statistics of feature maps at five depths, and the head that maps them to the space. A style is
what such statistics describe, and their gradients are textures and colours where those of a classifier are noise.
Knows nothing of texts; `training/train_image_encoder.py` puts the two together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from .perceptual import VGGFeatures


@dataclass
class StatisticsEncoderOutput(BaseOutput):
    """`pooler_output`: (B, E), not normalised, as SigLIP's towers give it."""

    pooler_output: Tensor


class StatisticsEncoder(ModelMixin, ConfigMixin):
    """`forward(pixel_values)`: pictures (B, 3, S, S) in [-1, 1] -> `pooler_output` (B, E).

    channels: widths of the five stages of its own small VGG16. `center` and `spread` are those of the statistics over
    the training artworks.
    """

    @register_to_config
    def __init__(
        self,
        projection_size: int = 192,
        channels: Sequence[int] = (16, 32, 64, 128, 128),
        hidden_size: int = 384,
        image_size: int = 160,
        patch_size: int = 16,
    ) -> None:
        super().__init__()
        self.features = VGGFeatures(depth=16, channels=tuple(channels))
        width = 2 * sum(channels)
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))
        self.head = nn.Sequential(
            nn.Linear(width, hidden_size), nn.GELU(), nn.Dropout(0.2), nn.Linear(hidden_size, projection_size)
        )

    def statistics(self, pixel_values: Tensor) -> Tensor:
        """Mean and logarithm of the deviation of every channel, (B, 2 * sum(channels))."""
        columns = []
        for maps in self.features(pixel_values / 2 + 0.5, VGGFeatures.lpips_taps).values():
            variance, mean = torch.var_mean(maps.float(), dim=(2, 3), correction=0)  # (B, C) each
            columns += [mean, 0.5 * torch.log(variance + 1e-4)]
        return torch.cat(columns, 1)

    def forward(self, pixel_values: Tensor) -> StatisticsEncoderOutput:
        standardised = (self.statistics(pixel_values) - self.center) / self.spread  # (B, W)
        pooled = self.head(standardised.to(self.head[0].weight.dtype).clamp(-5, 5))  # (B, E)
        return StatisticsEncoderOutput(pooler_output=pooled)
