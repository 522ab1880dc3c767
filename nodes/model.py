"""What travels over a STYLEMAMBA_MODEL link: a pipeline under the host's memory manager.

Responsible for loading it, for bringing it to its device, and for what a style or prompt makes of it. The pipeline is
shared by every node it reaches, so it is never changed: a style is put to use in a pipeline of its own over the same nets.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from . import host
from .folders import find_image_guided, find_model
from .style_mix import StyleMix

if TYPE_CHECKING:
    from ..pipeline.image_guided_pipeline import ImageGuidedPipeline
    from ..pipeline.pipeline_stylemamba import StyleMambaPipeline
    from ..pipeline.style import Style

DEFAULT_MODEL = "tiny"  # bundled
_BYTES_PER_PIXEL = 4096  # of a float32 pass through encoder, fusion and decoder; generous


@dataclass(frozen=True, eq=False)
class HostModel:
    name: str
    pipe: "StyleMambaPipeline | ImageGuidedPipeline"
    patcher: object

    @classmethod
    def of(cls, name: str, pipe: "StyleMambaPipeline | ImageGuidedPipeline") -> "HostModel":
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

    @classmethod
    def load_image_guided(cls, name: str) -> "HostModel":
        """A SaMam or Mamba-ST."""
        from ..pipeline.loading import load_pipeline

        with torch.inference_mode(False):
            pipe = load_pipeline(find_image_guided(name))
        pipe.set_progress_bar_config(disable=True)
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
        """With the style if there is one, else with the prompt.

        Words and pictures are directions, which are mixed into one; fitted styles each have a network, whose results are
        mixed. Words among fitted styles have none to be mixed by.
        """
        from ..pipeline.style_mixing import mix_directions

        if mix is None:
            if not prompt.strip():
                raise ValueError(
                    "prompt is empty and no style is connected: write a prompt or connect a style."
                )
            mix = StyleMix.of(prompt)
        if mix.pictures:
            raise ValueError(
                f"the style is a picture for {mix.pictures[0].model.name!r}, which works by itself and in StyleMamba Stylize "
                "alone: choose the method StyleMamba in StyleMamba Style From Image, and do not blend the two kinds."
            )
        if mix.words:
            self.require_prompts()
            if mix.fitted:
                raise ValueError(
                    f"{mix.words[0]!r} is a prompt and {mix.fitted[0].prompt!r} a fitted style: blend styles of one kind, or "
                    "apply one after the other."
                )
        pipe, weights = self.own_pipeline(), [weight for _, weight in mix.parts]
        names = [f"{index} {getattr(style, 'prompt', style)}" for index, (style, _) in enumerate(mix.parts)]
        for name, (style, _) in zip(names, mix.parts, strict=True):
            if not isinstance(style, str):
                pipe.load_style(style, name)  # which refuses those of another model
        # Of words and pictures only the ratio of the weights counts.
        if mix.words or (not mix.fitted and (len(names) > 1 or weights[0] != 1)):
            pipe.unload_styles()
            directions = [self._direction(style) for style, _ in mix.parts]
            embeds = mix_directions(*directions, weights=weights, mode=mix.mode)
            return StyledModel(self, pipe, embeds, strength)
        pipe.set_styles(names, weights, mix=mix.mode)
        return StyledModel(self, pipe, None, strength)

    def _direction(self, style: "Style | str") -> Tensor:
        """(1, E) of words, or of a style that was read from a picture."""
        if isinstance(style, str):
            return self.pipe.encode_prompt(style)
        # Where the words are encoded: the host moves the nets only when they are about to be used.
        return style.prompt_embeds[None].to(self.pipe._execution_device)

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

    def arguments(self, batch: int) -> dict:
        """Those of the pipeline that say which style, for so many pictures."""
        return {"prompt_embeds": self.direction(batch)}

    def enable_tiling(self, side: int) -> None:
        self.pipe.enable_tiling(side)


@dataclass(frozen=True, eq=False)
class PictureGuidedModel:
    """The same for a style of pictures, which bring their own model."""

    model: HostModel
    mix: StyleMix
    strength: float
    enable_tiling = None  # its pipeline paints what is too large at a smaller size

    @classmethod
    def of(cls, mix: StyleMix, strength: float) -> "PictureGuidedModel":
        models = {style.model.name: style.model for style in mix.pictures}
        if len(models) > 1 or len(mix.pictures) < len(mix.parts):
            raise ValueError(
                f"the blend holds pictures for {' and '.join(models)} and other styles: blend styles of one method of StyleMamba "
                "Style From Image."
            )
        if mix.mode != "linear" and len(mix.parts) > 1:
            raise ValueError(
                f"the blend of pictures is {mix.mode!r}, wanted linear: choose it in Blend Styles."
            )
        return cls(next(iter(models.values())), mix, strength)

    @property
    def pipe(self) -> "ImageGuidedPipeline":
        return self.model.pipe

    def arguments(self, batch: int) -> dict:
        return {"style_image": [(style.picture, weight) for style, weight in self.mix.parts]}


def default_model(*mixes: StyleMix | None) -> HostModel:
    """For who connects no model. Refuses a style that was fitted on another."""
    from ..pipeline.style import StyleFileError

    model = HostModel.load(DEFAULT_MODEL)
    for mix in filter(None, mixes):
        try:
            model.styled(mix)
        except StyleFileError as error:
            raise ValueError(
                f"this style does not fit the bundled model {DEFAULT_MODEL!r}: connect the model it was fitted on, from "
                f"StyleMamba Loader. ({error})"
            ) from error
    return model
