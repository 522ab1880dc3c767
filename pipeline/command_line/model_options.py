"""The options that say which model to use and where to run it, and the loading of what they say."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...weights import bundled_folder, bundled_names, is_image_guided
from .terminal import quiet_libraries

if TYPE_CHECKING:
    import torch

    from ..image_guided_pipeline import ImageGuidedPipeline
    from ..perceptual import VGGFeatures
    from ..pipeline_stylemamba import StyleMambaPipeline
    from ..style import Style

_PANEL = "Model"
_SHORT_NAMES = {"samam": "samam-tiny", "mamba-st": "mamba-st-tiny"}
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME|FOLDER|HUB-ID",
        help="A bundled model, a folder that save_pretrained wrote, or a Hub id.",
        show_default="the bundled model",
        rich_help_panel=_PANEL,
    ),
]
VaeOption = Annotated[
    str | None,
    typer.Option(
        "--vae",
        metavar="NAME|FOLDER|HUB-ID",
        help="Instead of --model: a Stable Diffusion autoencoder.",
        rich_help_panel=_PANEL,
    ),
]
TextEncoderOption = Annotated[
    str | None,
    typer.Option(
        "--text-encoder",
        metavar="FOLDER|HUB-ID",
        help="With --vae, or with the bundled autoencoder: a SigLIP checkpoint, which reads prompts.",
        rich_help_panel=_PANEL,
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="cpu, cuda, cuda:1, mps ...",
        show_default="a GPU if there is one",
        rich_help_panel=_PANEL,
    ),
]
DtypeOption = Annotated[
    str,
    typer.Option(
        "--dtype", metavar="float32|float16|bfloat16", help="Precision of the model.", rich_help_panel=_PANEL
    ),
]
VggOption = Annotated[
    str | None,
    typer.Option(
        "--vgg",
        metavar="FILE|torchvision",
        help="VGG weights (.safetensors, .pth), or torchvision to download its VGG19 of 550 MB.",
        rich_help_panel=_PANEL,
    ),
]


def full_name(model: str | None) -> str | None:
    """`samam` is short for `samam-tiny`, where nothing else has that name."""
    return model if model is None or os.path.exists(model) else _SHORT_NAMES.get(model, model)


def holds_image_guided(model: str | None) -> bool:
    """A Hub id is taken for a StyleMamba; what it holds is known once it is fetched."""
    folder = None if model is None else bundled_folder(model) or Path(model)
    return folder is not None and is_image_guided(folder)


def load_model(
    model: str | None,
    vae: str | None,
    text_encoder: str | None,
    device: str | None,
    dtype: str,
    styles: Sequence["Style"] = (),
) -> "StyleMambaPipeline":
    """The pipeline that the options ask for. `styles` are those it is going to apply: with one, no text encoder is
    needed to know how wide a fusion has to be."""
    if model is not None and (vae is not None or text_encoder is not None):
        raise typer.BadParameter("wanted either --model, or --vae and --text-encoder, not both.")
    if vae is not None and text_encoder is None and not styles:
        raise typer.BadParameter("--vae alone reads no prompt: add --text-encoder with a SigLIP checkpoint.")
    if holds_image_guided(full_name(model)):
        raise typer.BadParameter(
            f"--model {model} paints after pictures: use it with stylemamba stylize --style-image, or leave it out."
        )
    precision = _torch_dtype(dtype)
    place = choose_device(device)
    quiet_libraries()
    from ..pipeline_stylemamba import StyleMambaPipeline

    if vae is None and text_encoder is None:
        pipe = StyleMambaPipeline.from_pretrained(source_of_model(model or _default_model()), dtype=precision)
    else:
        pipe = StyleMambaPipeline.from_parts(
            vae=source_of_model(vae or _default_model()),
            text_encoder=None if text_encoder is None else source_of_model(text_encoder),
            fusion=styles[0].build_fusion() if text_encoder is None and styles else None,
            dtype=precision,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(place)


def load_image_guided(model: str, device: str | None, dtype: str) -> "ImageGuidedPipeline":
    """A folder or bundled name that is known to hold one."""
    precision, place = _torch_dtype(dtype), choose_device(device)
    quiet_libraries()
    from ..loading import load_pipeline

    pipe = load_pipeline(source_of_model(model), dtype=precision)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(place)


def load_vgg(vgg: str) -> "VGGFeatures":
    from ..perceptual import VGGFeatures

    return VGGFeatures.from_torchvision() if vgg == "torchvision" else VGGFeatures.from_file(vgg)


def choose_device(device: str | None) -> "torch.device":
    import torch

    if device is None:
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(found)
    try:
        place = torch.device(device)
        torch.empty(1, device=place)  # a device may have a name and yet not be there
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise typer.BadParameter(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error
    return place


def source_of_model(name: str) -> str:
    """A bundled name becomes its folder; nothing that is not clearly a Hub id may cause a download."""
    folder = bundled_folder(name)
    if folder is not None:
        return str(folder)
    if os.path.exists(name) or re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        return name
    known = ", ".join(bundled_names()) or "none"
    raise FileNotFoundError(
        f"no model {name!r}: wanted a bundled model ({known}), a folder that exists, or a Hub id like owner/name."
    )


def _default_model() -> str:
    names = bundled_names()
    if not names:
        raise FileNotFoundError(
            "no model is bundled with this installation: name one with --model, or with --vae and --text-encoder."
        )
    return names[0]


def _torch_dtype(name: str) -> "torch.dtype":
    import torch

    if name not in ("float32", "float16", "bfloat16"):
        raise typer.BadParameter(f"--dtype is {name!r}, wanted float32, float16 or bfloat16.")
    return getattr(torch, name)
