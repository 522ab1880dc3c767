"""A decoder with a style in its weights, as a change that can be scaled, summed and stored.

Responsible for: which decoder weights a style may change, full or low-rank changes, decoding with
`weights + strength * change`. What is changed is the decoder of an autoencoder or, where a model has one, the decoder
that paints (`conditional_decoder.py`). It is looked at and never touched. Knows nothing of fitting or files.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .module_view import module_view

# One entry per changed weight: a full change, or the two factors of a low-rank one.
WeightChange = Tensor | tuple[Tensor, Tensor]


_NOT_DECODING = ("encoder", "quant_conv")  # children of an autoencoder


def decoder_weights(decoder: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that a style may change, by their names in `decoder`, an autoencoder or a decoder that paints."""
    return {k: p for k, p in decoder.named_parameters() if k.partition(".")[0] not in _NOT_DECODING}


def apply_change(weight: Tensor, change: WeightChange, strength: float) -> Tensor:
    if isinstance(change, tuple):
        up, down = change  # (out, rank), (rank, in * kernel)
        change = up @ down
    return weight + strength * change.to(weight).view_as(weight)


class StyleDecoder(nn.Module):
    """`forward(latents, strength, prompt_embeds)`: latents as the autoencoder's `decode` takes them -> pictures in [-1, 1].

    `decoder`: an autoencoder, or a decoder that paints and is called with (latents, prompt_embeds, strength). `changes`
    maps names of its parameters to a `WeightChange`. `strength=0` decodes with unchanged weights.
    """

    def __init__(
        self,
        decoder: nn.Module,
        changes: Mapping[str, WeightChange] | None = None,
        *,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        self.decoder = module_view(decoder, device, dtype, without=_NOT_DECODING)
        self.changes = dict(changes or {})

    def forward(self, latents: Tensor, strength: float = 1.0, prompt_embeds: Tensor | None = None) -> Tensor:
        decode = _Decode(self.decoder)
        if strength == 0 or not self.changes:
            return decode(latents, prompt_embeds, strength)
        weights = dict(self.decoder.named_parameters())
        changed = {f"decoder.{k}": apply_change(weights[k], c, strength) for k, c in self.changes.items()}
        return functional_call(decode, changed, (latents, prompt_embeds, strength))

    def _trainable(self) -> dict[str, Tensor]:
        """All parameters; of a decoder that paints, those that steer it."""
        steering = getattr(self.decoder, "STEERING", ("",))
        parameters = self.decoder.named_parameters()
        return {name: p for name, p in parameters if any(part in name for part in steering)}

    def full_changes(self) -> dict[str, Tensor]:
        """A zero change for every weight that may be trained."""
        return {name: torch.zeros_like(p) for name, p in self._trainable().items()}

    def low_rank_changes(self, rank: int, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Low-rank changes, zero at the start, of the weights that set the look of the whole picture: the layers at
        latent resolution or below, every layer of a decoder that has no such part (TAESD), or what steers one that paints."""
        weights = {k: p for k, p in self._trainable().items() if p.ndim >= 2}
        if not hasattr(self.decoder, "STEERING"):
            inner = {
                k: p for k, p in weights.items() if re.search(r"(^|\.)(conv_in|mid_block)\.|^blocks\.", k)
            }
            weights = inner or weights
        generator, factors = torch.Generator().manual_seed(seed), {}
        for name, weight in weights.items():
            out, fan_in = weight.shape[0], weight[0].numel()
            down = torch.randn(rank, fan_in, generator=generator).to(weight) / fan_in**0.5
            factors[name] = (torch.zeros(out, rank).to(weight), down)
        return factors


class _Decode(nn.Module):
    """`functional_call` runs `forward`; an autoencoder's `forward` would encode first."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, latents: Tensor, prompt_embeds: Tensor | None, strength: float) -> Tensor:
        if hasattr(self.decoder, "decode"):
            return self.decoder.decode(latents).sample
        return self.decoder(latents, prompt_embeds, strength)


def blend_changes(
    styles: Sequence[Mapping[str, WeightChange]], weights: Sequence[float]
) -> dict[str, WeightChange]:
    """Weighted sum of changes. A single style of weight 1 comes back as it is, low rank included."""
    used = [(changes, w) for changes, w in zip(styles, weights, strict=True) if w != 0 and changes]
    if len(used) == 1 and used[0][1] == 1:
        return dict(used[0][0])
    blended: dict[str, Tensor] = {}
    for changes, w in used:
        for name, change in changes.items():
            full = change[0] @ change[1] if isinstance(change, tuple) else change
            full = w * full.float().flatten(1) if full.ndim > 1 else w * full.float()
            blended[name] = blended[name] + full if name in blended else full
    return blended
