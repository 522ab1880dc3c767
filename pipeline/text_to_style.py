"""Words for SaMam: from the embedding of a text to what SaMam would see in a picture of that style.

Responsible for the one small network between the two spaces. Knows nothing of tokens or pictures;
`training/train_text_to_style.py` teaches it with artworks and what people call them.
"""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class TextToStyle(ModelMixin, ConfigMixin):
    """`forward(embeds)`: unit embeddings of texts (B, E) -> style embeddings (B, R, 3, 3).

    channels: R, those of a palette included. `center` and `spread` are those of the style embeddings of the training artworks.
    """

    @register_to_config
    def __init__(self, cond_dim: int = 192, channels: int = 64, hidden_size: int = 384) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(channels, 3, 3))
        self.register_buffer("spread", torch.ones(channels, 3, 3))
        self.head = nn.Sequential(
            nn.Linear(cond_dim, hidden_size),
            nn.GELU(),
            nn.Dropout(0.2),
            nn.Linear(hidden_size, 9 * channels),
        )

    def forward(self, embeds: Tensor) -> Tensor:
        standardised = self.head(embeds.to(self.head[0].weight.dtype)).unflatten(1, self.center.shape)
        return standardised * self.spread + self.center
