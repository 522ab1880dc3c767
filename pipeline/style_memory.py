"""The styles that a bundled model knows, by what their words are like: unusual words find the style that they mean.

Responsible for: the way from the embedding of any prompt to one that the decoder was trained with. Knows nothing of how a prompt
became an embedding.

Shapes: B prompts, N styles, E width of an embedding.
"""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor


class StyleMemory(ModelMixin, ConfigMixin):
    """`forward(prompt_embeds)`: (B, E) -> (B, E), attention over the styles it knows, unit vectors.

    A text encoder puts "six-sided wax chambers" a long way from "honeycomb", though nearer to it than to other styles;
    a decoder that is given a point in between paints something in between all styles. `temperature`: how much nearer a
    style must be to win, as a cosine.
    """

    @register_to_config
    def __init__(self, num_styles: int, embed_dim: int, temperature: float = 0.03) -> None:
        super().__init__()
        self.register_buffer("styles", torch.zeros(num_styles, embed_dim))

    @classmethod
    def of(cls, styles: Tensor, temperature: float = 0.03) -> "StyleMemory":
        """styles: (N, E), one embedding for each."""
        memory = cls(*styles.shape, temperature)
        memory.styles.copy_(F.normalize(styles, dim=-1))
        return memory

    def forward(self, prompt_embeds: Tensor) -> Tensor:
        styles = self.styles.to(prompt_embeds.dtype)
        likeness = F.normalize(prompt_embeds, dim=-1) @ styles.T  # (B, N)
        attention = (likeness / self.config.temperature).softmax(-1)
        return F.normalize(attention @ styles, dim=-1)  # (B, E)
