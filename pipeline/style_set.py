"""The styles that a pipeline has loaded, and the mix of them in use.

Responsible for names and weights, for checking that a style fits the models, and for fusing with several styles
at once. Each style keeps its own fusion: results are mixed, not weights, so styles of different fits and presets mix.
"""

import logging
import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .fusion import StyleFusion
from .style import Style, StyleFileError, fingerprint
from .style_decoder import WeightChange, decoder_weights
from .style_mixing import MIXES, mix_directions

logger = logging.getLogger(__name__)


class StyleSet:
    """`loaded`: name -> style. `active`: name -> weight of those in use, in order. `mix`: how their directions are mixed."""

    def __init__(self) -> None:
        self.loaded: dict[str, Style] = {}
        self.active: dict[str, float] = {}
        self.mix = "linear"
        self._fusions: dict[str, StyleFusion] = {}

    def add(self, name: str, style: Style, vae: nn.Module, decoder: nn.Module | None = None) -> None:
        """Takes a style in and puts it to use alone, if it fits the autoencoder, and the decoder that paints where
        there is one."""
        if name in self.loaded:
            raise ValueError(
                f"a style named {name!r} is loaded already: unload it first or give another name."
            )
        _check_base(name, style, vae, decoder)
        self._fusions[name] = style.build_fusion()
        self.loaded[name] = style
        self.active = {name: 1.0}

    def use(
        self,
        names: str | Sequence[str],
        weights: float | Sequence[float] | None = None,
        mix: str = "linear",
    ) -> None:
        names = [names] if isinstance(names, str) else list(names)
        if weights is None:
            weights = [1.0] * len(names)
        weights = [weights] * len(names) if isinstance(weights, numbers.Real) else list(weights)
        self._require_loaded(names)
        if len(weights) != len(names) or len(set(names)) != len(names):
            raise ValueError(
                f"got names {names} and weights {weights}, wanted each name once and one weight for each."
            )
        if not all(math.isfinite(weight) for weight in weights):
            raise ValueError(f"got weights {weights}, wanted finite numbers.")
        if not any(weights):
            raise ValueError("all weights are 0: give one a weight, or unload_styles to use none.")
        if abs(sum(weights)) < 1e-8:
            raise ValueError(
                f"got weights {weights} with the sum 0, which cancel: wanted some style to be left over."
            )
        if mix not in MIXES:
            raise ValueError(f"mix is {mix!r}, wanted one of {', '.join(MIXES)}.")
        if mix == "slerp" and min(weights) < 0:
            raise ValueError(
                f"got weights {weights}: mix='slerp' wants none below 0, mix='linear' takes them."
            )
        self.active = {name: float(weight) for name, weight in zip(names, weights, strict=True) if weight}
        self.mix = mix

    def remove(self, names: str | Sequence[str] | None = None) -> None:
        names = list(self.loaded) if names is None else [names] if isinstance(names, str) else list(names)
        self._require_loaded(names)
        for name in set(names):
            del self.loaded[name], self._fusions[name]
            self.active.pop(name, None)

    def weights(self, whole: bool) -> dict[str, float]:
        """Of the styles in use. whole: brought up to an `amount` of 1, for a decoder that is given that as its strength."""
        return {name: weight / self.amount for name, weight in self.active.items()} if whole else self.active

    def fuse(self, latents: Tensor, prompt_embeds: Tensor | None = None, *, whole: bool = False) -> Tensor:
        """`z + sum_i w_i (M_i - z)` over the styles in use; one style of weight 1 gives its M exactly."""
        mixed: Tensor | None = None
        for name, weight in self.weights(whole).items():
            fusion = self._fusions[name]
            if (fusion.device, fusion.dtype) != (latents.device, latents.dtype):
                # Not diffusers' own `to`, which warns of what the mixer sees to: its scan stays in float32. And not as
                # inference tensors, which a host's mode would make them: no gradient could pass through them later.
                with torch.inference_mode(False):
                    nn.Module.to(fusion, latents.device, latents.dtype)
            embeds = (
                self.loaded[name].prompt_embeds.expand(len(latents), -1)
                if prompt_embeds is None
                else prompt_embeds
            )
            fused = fusion(latents, embeds.to(latents.device))
            if len(self.active) == 1 and weight == 1:
                return fused
            shift = weight * (fused - latents)
            mixed = shift if mixed is None else mixed + shift
        return latents + mixed

    def prompt_embeds(self) -> Tensor:
        """(1, E): the mixture of the prompts that the styles in use were fitted to."""
        embeds = [self.loaded[name].prompt_embeds for name in self.active]
        return mix_directions(*embeds, weights=list(self.active.values()), mode=self.mix)[None]

    @property
    def amount(self) -> float:
        """How much the styles in use are wanted together, up to 1; without any, 1."""
        return min(1.0, sum(map(abs, self.active.values()))) if self.active else 1.0

    def decoder_changes(self, *, whole: bool = False) -> tuple[list[dict[str, WeightChange]], list[float]]:
        """What `blend_changes` takes."""
        weights = self.weights(whole)
        return [self.loaded[name].decoder for name in weights], list(weights.values())

    def _require_loaded(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.loaded:
                raise ValueError(
                    f"no style named {name!r} is loaded; loaded are {sorted(self.loaded) or 'none'}."
                )


def _check_base(name: str, style: Style, vae: nn.Module, decoder: nn.Module | None) -> None:
    fitted_on = style.info.get("base", {}).get("vae", {})
    source = fitted_on.get("name") or fitted_on.get("class") or "another autoencoder"
    channels = style.fusion_config.get("latent_channels")
    if channels != vae.config.latent_channels:
        raise StyleFileError(
            f"style {name!r} was fitted on {source} with {channels} latent channels, this pipeline's autoencoder has "
            f"{vae.config.latent_channels}: load it into a pipeline with that autoencoder."
        )
    changed = vae if decoder is None else decoder
    weights = decoder_weights(changed)
    for key, change in style.decoder.items():
        if isinstance(change, tuple):
            fits = key in weights and (len(change[0]), change[1].shape[1]) == (
                weights[key].shape[0],
                weights[key][0].numel(),
            )
        else:
            fits = key in weights and change.shape == weights[key].shape
        if not fits and decoder is not None and key in decoder_weights(vae):
            raise StyleFileError(
                f"style {name!r} changes the decoder of an autoencoder ({source}), this pipeline paints with a decoder of its "
                "own: load the style into a pipeline of that autoencoder alone (StyleMambaPipeline.from_parts, on the command "
                "line --vae), or fit it again on this pipeline."
            )
        if not fits:
            raise StyleFileError(
                f"style {name!r} changes decoder weights ({key}) that this pipeline's {type(changed).__name__} does not "
                f"have: it was fitted on {source}."
            )
    for part, title, net in (("vae", "autoencoder", vae), ("style_decoder", "decoder that paints", decoder)):
        known = style.info.get("base", {}).get(part, {})
        expected = known.get("fingerprint", "unknown")
        if net is not None and expected != "unknown" and fingerprint(net) not in (expected, "unknown"):
            logger.warning(
                "Style %r was fitted on other weights of the %s (%s); the result may differ from its thumbnail.",
                name, title, known.get("name") or known.get("class") or "unknown",
            )  # fmt: skip
