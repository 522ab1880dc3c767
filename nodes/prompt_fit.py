"""StyleMamba Prompt Fit: trains a style from words and a few pictures, once; then it is on the disk.

Responsible for the inputs, the progress and the way out when memory is short. The fit itself is in
`pipeline/prompt_fit.py`, where its results lie in `fit_store.py`.
"""

import dataclasses

import torch
from torch import Tensor

from . import host
from .autoencoder import native_vae
from .fit_store import StoredFit
from .host import io
from .pictures import from_image, from_image_or_video, to_image
from .style_mix import StyleMix
from .stylize import stylize

_PRESETS = ("auto", "sharpen", "paper", "quality", "fast")
_TRAIN = ("fusion+decoder", "fusion", "decoder_lora")
_PREVIEWS = 12  # over a fit; each costs a pass through the decoder
_SMALLEST_SIDE = 128


class StyleMambaPromptFit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="StyleMambaPromptFit",
            display_name="StyleMamba Prompt Fit",
            category="StyleMamba",
            description="Trains a style from a prompt on one or several of your pictures. The result is kept on the disk: the same "
            "inputs give it at once, after a restart too, and a cancelled fit goes on where it was.",
            search_aliases=["train style", "fit style", "learn style", "CLIPstyler", "prompt style training"],
            inputs=[
                host.Model.Input("model", tooltip="From StyleMamba Loader; one with a text tower and an image tower."),
                io.MultiType.Input(
                    "images", [io.Image, io.Video],
                    tooltip="What to learn on: one picture, or a batch of a few; they are reduced for it. Of a video three frames "
                    "from the middle are taken, and held calm.",
                ),
                io.String.Input(
                    "prompt", default="ukiyo-e woodblock print", multiline=True, tooltip="The style to learn, in words."
                ),
                io.String.Input(
                    "source_prompt", default="a plain photo", tooltip="What the pictures are now, in words; the style is the way from here."
                ),
                io.Combo.Input(
                    "preset", options=list(_PRESETS), default="auto",
                    tooltip="auto: sharpen for the bundled model, else paper. sharpen: makes more of what the model paints already. "
                    "paper: as published. quality: ten steps an epoch and texture from patches. fast: small pictures.",
                ),
                io.Int.Input("epochs", default=20, min=1, max=1000, tooltip="Rounds of training; more is stronger and slower."),
                io.Combo.Input(
                    "train", options=list(_TRAIN), default="fusion+decoder",
                    tooltip="fusion+decoder: the strongest. fusion: a small file, milder. decoder_lora: nearly as small, stronger.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False,
                    tooltip="Decides every random number of the fit.",
                ),
            ],
            outputs=[
                host.Style.Output(display_name="style", tooltip="For StyleMamba Stylize, Fuse, Decode, Blend and Save Style."),
                io.LossMap.Output(display_name="loss_map", tooltip="The loss of each step, for Plot Loss Graph."),
                io.Image.Output(display_name="preview", tooltip="The first picture in the new style."),
                io.Vae.Output(display_name="vae", tooltip="A native VAE that decodes with the style."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, images, prompt: str, source_prompt: str, preset: str, epochs: int, train: str, seed: int
    ) -> io.NodeOutput:
        from ..pipeline.fit_config import FILM_TEMPORAL_WEIGHT, KEY_FRAMES, PromptFitConfig

        if not prompt.strip():
            raise ValueError("prompt is empty, wanted the style to learn, in words.")
        model.require_prompts()
        model.require_pictures("learn a style")
        is_film, (images, *_) = not isinstance(images, Tensor), from_image_or_video(images)
        if is_film:
            start = max(0, (len(images) - KEY_FRAMES) // 2)
            images = images[start : start + KEY_FRAMES]
        pictures = from_image(images).cpu()
        config = PromptFitConfig(
            preset=model.pipe.fit_preset if preset == "auto" else preset,
            epochs=epochs,
            train=train,
            source_prompt=source_prompt,
            temporal_weight=FILM_TEMPORAL_WEIGHT if is_film else 0.0,
        )

        stored = StoredFit.of(model, pictures, prompt, config, seed)
        style = stored.read()
        if style is None:
            style = _fit(model, pictures, prompt, config, seed, stored)
            stored.write(style)
        mix = StyleMix.of(style)
        model.to_device(*pictures.shape[-2:])
        styled = model.styled(mix)
        preview = to_image(stylize(styled, pictures[:1], progress=host.Progress(1)))
        losses = {"loss": [float(value) for value in style.info["losses"].get("total", [])]}
        return io.NodeOutput(mix, losses, preview, native_vae(styled), ui=host.shown_pictures(preview, cls))


def _fit(model, pictures: Tensor, prompt: str, config, seed: int, stored: StoredFit):
    """Fits at the config's size, or at half of it for as often as memory does not suffice."""
    while True:
        out_of_memory = False
        model.to_device(config.image_size, config.image_size)
        try:
            return _fit_once(model, pictures, prompt, config, seed, stored)
        except RuntimeError as error:
            if not host.is_out_of_memory(error):
                raise
            out_of_memory = True  # the retry waits until the traceback, which holds the tensors, is gone
        finally:  # the user's cancel too, which need not be an Exception
            host.release_memory()
        if out_of_memory and config.image_size // 2 < _SMALLEST_SIDE:
            raise MemoryError(
                f"there is not enough memory to fit even at {config.image_size} px: close other programs, give fewer pictures, "
                "or choose train = fusion."
            )
        config = dataclasses.replace(config, image_size=config.image_size // 2)


def _fit_once(model, pictures: Tensor, prompt: str, config, seed: int, stored: StoredFit):
    progress, every = host.Progress(config.steps), max(1, config.steps // _PREVIEWS)

    def after_step(state) -> None:
        wanted = state.step % every == 0 or state.step == state.steps
        progress(state.step, state.preview() if wanted else None)

    # The host runs nodes in inference mode, whose tensors no gradient can pass: all is copied outside of it. The fit
    # itself works on copies and views, so that the shared model stays as it is.
    with torch.inference_mode(False):
        generator = torch.Generator().manual_seed(seed)
        return model.own_pipeline().fit_style(
            [picture[None].clone() for picture in pictures],
            prompt,
            config=config,
            generator=generator,
            callback=after_step,
            checkpoint=stored.checkpoint(config),
        )
