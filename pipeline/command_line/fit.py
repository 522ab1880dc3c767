"""`stylemamba fit`: a prompt and pictures in, a style file out. Leaving it early loses nothing."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..fit_config import FILM_TEMPORAL_WEIGHT, KEY_FRAMES, PromptFitConfig
from .model_options import (
    DeviceOption,
    DtypeOption,
    ModelOption,
    TextEncoderOption,
    VaeOption,
    VggOption,
    load_model,
    load_vgg,
)
from .output_files import require_output, require_picture_suffix
from .picture_files import VIDEOS, find_pictures, read_picture, write_picture
from .stylize import OverwriteOption
from .terminal import complain, progress_bar, say
from .video_files import read_key_frames

if TYPE_CHECKING:
    from ..prompt_fit import FitProgress
    from ..style import Style

_SHOWN = (
    "style",
    "dir",
    "md",
    "so",
    "vgg",
    "lpips",
    "latent",
    "temporal",
)  # terms of the loss in the progress bar
_STOPPING = "stopping after this step (Ctrl-C: at once)"


def fit(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The style in words.")],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE", help="Pictures to fit on: files, folders, quoted patterns; or one video."
        ),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="STYLE", help="The style file to write (.safetensors).")
    ],
    preset: Annotated[
        str,
        typer.Option(
            metavar="auto|sharpen|paper|quality|fast",
            help="More of what the model paints already, as published, finer texture, or a look in a quarter of the time; "
            "auto: sharpen for the bundled model, else paper.",
        ),
    ] = "auto",
    epochs: Annotated[int, typer.Option(metavar="N")] = PromptFitConfig.epochs,
    steps_per_epoch: Annotated[int | None, typer.Option(metavar="N", show_default="the preset's")] = None,
    train: Annotated[
        str,
        typer.Option(
            metavar="fusion+decoder|fusion|decoder_lora",
            help="What is trained; the last two make small files.",
        ),
    ] = PromptFitConfig.train,
    source_prompt: Annotated[
        str, typer.Option(metavar="TEXT", help="What the pictures are, in words.")
    ] = PromptFitConfig.source_prompt,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Same seed, same style (on a CPU).")] = 0,
    preview: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A picture of the style so far, replaced after each epoch."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where progress is kept until the end.", show_default="STYLE.part"),
    ] = None,
    key_frames: Annotated[
        int, typer.Option(metavar="N", min=1, help="Of a video: so many frames from its middle.")
    ] = KEY_FRAMES,
    temporal_weight: Annotated[
        float | None,
        typer.Option(
            metavar="W",
            min=0.0,
            help="How calm a video has to stay.",
            show_default=f"{FILM_TEMPORAL_WEIGHT:g} for a video, else 0",
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    vgg: VggOption = None,
    model: ModelOption = None,
    vae: VaeOption = None,
    text_encoder: TextEncoderOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
) -> None:
    """Fits a style to a prompt, on one picture or several.

    Ctrl-C ends the fit after the step in progress (twice: at once) with exit
    code 130; the same command goes on from there. Content is compared by the
    model's own perceptual network (the bundled one has one), by a VGG with
    --vgg as in the paper, else in the autoencoder's latents.

    \b
    Examples:
      stylemamba fit "stained glass" photo.jpg -o glass.safetensors
      stylemamba fit "ink drawing" photos/ -o ink.safetensors --preset quality \\
          --train decoder_lora --preview ink.jpg --vgg torchvision \\
          --vae stabilityai/sd-vae-ft-mse \\
          --text-encoder google/siglip-base-patch16-224
    """
    videos = [Path(name) for name in images if Path(name).suffix.lower() in VIDEOS and os.path.isfile(name)]
    if videos and len(images) > 1:
        raise typer.BadParameter(f"{videos[0]} is a video: fit on one video, or on pictures.")
    if temporal_weight is None:
        temporal_weight = FILM_TEMPORAL_WEIGHT if videos else 0.0
    try:
        config_of = partial(
            PromptFitConfig,
            temporal_weight=temporal_weight,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            train=train,
            source_prompt=source_prompt,
        )
        config = config_of() if preset == "auto" else config_of(preset=preset)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if out.suffix != ".safetensors":
        raise typer.BadParameter(f"-o {out} ends in {out.suffix!r}, wanted a name that ends in .safetensors.")
    checkpoint = checkpoint or out.with_name(out.name + ".part")
    if checkpoint.resolve() == out.resolve():
        raise typer.BadParameter(
            "--checkpoint and -o name the same file, wanted two: it is removed at the end."
        )
    paths = videos or [path for source in images for path in find_pictures(source)]
    require_output(out, overwrite=overwrite)
    require_output(checkpoint, overwrite=True)
    if preview is not None:
        require_picture_suffix(preview)
        require_output(preview, overwrite=True)
        if preview.resolve() in {path.resolve() for path in paths}:
            raise FileExistsError(f"{preview} is one of the pictures to fit on: give --preview another name.")
    pictures = read_key_frames(videos[0], key_frames) if videos else [read_picture(path) for path in paths]

    import torch

    perceptual = None if vgg is None else load_vgg(vgg)
    pipe = load_model(model, vae, text_encoder, device, dtype)
    if preset == "auto":
        config = config_of(preset=pipe.fit_preset)
    if perceptual is not None:
        pipe.register_modules(perceptual=perceptual.to(pipe.device))
    if pipe.text_encoder is None or pipe.image_encoder is None:
        raise ValueError(
            "this model cannot compare pictures with words, which a fit has to: give a SigLIP checkpoint with "
            "--text-encoder google/siglip-base-patch16-224."
        )
    if checkpoint.exists():
        complain(f"Going on from {checkpoint}.")

    style: Style | None = None
    with progress_bar() as bar:
        task = bar.add_task("fitting", total=config.steps)

        def after_step(progress: "FitProgress") -> bool:
            terms = " ".join(
                f"{name} {progress.losses[name]:.3f}" for name in _SHOWN if name in progress.losses
            )
            bar.update(task, completed=progress.step, description=f"epoch {progress.epoch + 1}  {terms}")
            if preview is not None and progress.step % config.steps_per_epoch == 0:
                write_picture(progress.preview(), preview)
            return not interrupted.is_set()

        with _interrupts(lambda: bar.update(task, description=_STOPPING)) as interrupted:
            try:
                style = pipe.fit_style(
                    pictures,
                    prompt,
                    config=config,
                    generator=torch.Generator().manual_seed(seed),
                    callback=after_step,
                    checkpoint=checkpoint,
                )
            except KeyboardInterrupt:
                interrupted.set()
    if style is None or interrupted.is_set():
        if checkpoint.exists():
            complain(f"Stopped; the same command goes on from {checkpoint}.")
        else:
            complain("Stopped before the first step; nothing was learnt yet.")
        raise typer.Exit(130)

    losses = style.info["losses"].get("style")
    if not losses:
        raise FloatingPointError(
            f"nothing was learnt: the fit became {style.info['stopped']}. Try --train fusion, or another picture."
        )
    style.save(out)
    checkpoint.unlink(missing_ok=True)
    say(f"{out}: {style.info['steps_done']} steps, style loss {losses[0]:.3f} -> {losses[-1]:.3f}")


@contextmanager
def _interrupts(announce: Callable[[], None]) -> Iterator[threading.Event]:
    """The first Ctrl-C sets the event, so that the step in progress can be finished and kept; a second interrupts."""
    interrupted = threading.Event()

    def handle(signum, frame) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()
        announce()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
