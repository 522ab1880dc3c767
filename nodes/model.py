"""What travels over a STYLEMAMBA_MODEL link: a pipeline under the host's memory manager.

Responsible for loading it, for bringing it to its device, and for what a style or prompt makes of it. The pipeline is
shared by every node it reaches, so it is never changed: a style is put to use in a pipeline of its own over the same nets.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from . import host
from .folders import find_model
from .style_mix import StyleMix

if TYPE_CHECKING:
    from ..pipeline.pipeline_stylemamba import StyleMambaPipeline

DEFAULT_MODEL = "tiny"  # bundled
_BYTES_PER_PIXEL = 4096  # of a float32 pass through encoder, fusion and decoder; generous


@dataclass(frozen=True, eq=False)
class HostModel:
    name: str
    pipe: "StyleMambaPipeline"
    patcher: object

    @classmethod
    def of(cls, name: str, pipe: "StyleMambaPipeline") -> "HostModel":
        nets = {part: net for part, net in pipe.components.items() if isinstance(net, nn.Module)}
        return cls(name, pipe, host.patcher(nn.ModuleDict(nets)))

    @classmethod
    def load(cls, name: str) -> "HostModel":
        """By its name in the loader's list. Reads files only, whatever the host may do with a network."""
        from ..pipeline.pipeline_stylemamba import StyleMambaPipeline

        # Weights made in the host's inference mode could never be trained through.
        with torch.inference_mode(False):
            pipe = StyleMambaPipeline.from_pretrained(find_model(name))
        return cls.of(name, pipe)

    @property
    def factor(self) -> int:
        """Pixels per latent, on a side."""
        return self.pipe.vae_scale_factor

    @property
    def device(self) -> torch.device:
        return self.patcher.load_device

    def to_device(self, height: int = 0, width: int = 0) -> None:
        """Call it before each use: the host may have moved the nets away since."""
        host.load(self.patcher, height * width * _BYTES_PER_PIXEL)

    def styled(self, mix: StyleMix | None, prompt: str = "", strength: float = 1.0) -> "StyledModel":
        """With the style if there is one, else with the prompt."""
        if mix is None:
            if not prompt.strip():
                raise ValueError(
                    "prompt is empty and no style is connected: write a prompt or connect a style."
                )
            self.require_prompts()
            return StyledModel(self, self.own_pipeline(), self.pipe.encode_prompt(prompt), strength)
        pipe = self.own_pipeline()
        names = [f"{index} {style.prompt}" for index, (style, _) in enumerate(mix.parts)]
        for name, (style, _) in zip(names, mix.parts, strict=True):
            pipe.load_style(style, name)
        pipe.set_styles(names, [weight for _, weight in mix.parts])
        return StyledModel(self, pipe, None, strength)

    def require_prompts(self) -> None:
        if self.pipe.text_encoder is None:
            raise ValueError(
                f"the model {self.name!r} reads no prompts, it has no text tower: connect a style from StyleMamba Load "
                "Style, or load a model with a text tower."
            )

    def require_pictures(self, purpose: str) -> None:
        if self.pipe.image_encoder is None:
            raise ValueError(
                f"the model {self.name!r} has no image tower, which is wanted to {purpose}: load a model that has one in "
                "StyleMamba Loader."
            )

    def own_pipeline(self) -> "StyleMambaPipeline":
        """Over the same nets, with no styles loaded."""
        config = self.pipe.config
        pipe = type(self.pipe)(
            **self.pipe.components, logit_scale=config.logit_scale, logit_bias=config.logit_bias
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe


@dataclass(frozen=True, eq=False)
class StyledModel:
    """A model about to be used: its own pipeline, with the styles loaded or the direction to go."""

    model: HostModel
    pipe: "StyleMambaPipeline"
    embeds: Tensor | None  # (1, E)
    strength: float

    def direction(self, batch: int) -> Tensor | None:
        return None if self.embeds is None else self.embeds.expand(batch, -1)


def default_model(mix: StyleMix | None) -> HostModel:
    """For who connects no model. Refuses a style that was fitted on another."""
    from ..pipeline.style import StyleFileError

    model = HostModel.load(DEFAULT_MODEL)
    if mix is not None:
        try:
            model.styled(mix)
        except StyleFileError as error:
            raise ValueError(
                f"this style does not fit the bundled model {DEFAULT_MODEL!r}: connect the model it was fitted on, from "
                f"StyleMamba Loader. ({error})"
            ) from error
    return model
