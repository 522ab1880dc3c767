"""`stylemamba stylize`: pictures, and prompts or styles, in; picture files out."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .model_options import (
    DeviceOption,
    DtypeOption,
    ModelOption,
    TextEncoderOption,
    VaeOption,
    find_style,
    load_model,
)
from .output_files import plan_outputs
from .picture_files import READABLE, find_pictures, read_picture, write_picture
from .terminal import complain, progress_bar, say, sentence

if TYPE_CHECKING:
    from torch import Tensor

    from ..pipeline_stylemamba import StyleMambaPipeline

_TEXT_ENCODER = "google/siglip-base-patch16-224"

ImageArgument = Annotated[
    str, typer.Argument(metavar="IMAGE", help="A picture, a folder of pictures, or a quoted pattern.")
]
OutOption = Annotated[
    str | None,
    typer.Option(
        "-o",
        "--out",
        metavar="OUT",
        help="A picture file (.png, .jpg, .webp, .tif) for one result, else a folder.",
        show_default="the current folder",
    ),
]
WeightOption = Annotated[
    list[float] | None,
    typer.Option("--weight", metavar="W", help="One for each style, in order.", show_default="equal shares"),
]
StrengthOption = Annotated[
    float, typer.Option(min=0.0, max=1.5, help="0 is the autoencoder's reconstruction, 1 the style.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]


def stylize(
    image: ImageArgument,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="Each gives one result for each picture."),
    ] = None,
    out: OutOption = None,
    style: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE", help="A style file, or a bundled style's name; several are mixed by --weight."
        ),
    ] = None,
    weight: WeightOption = None,
    style_image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A picture in place of a prompt, or mixed with it half and half."),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="White where to stylize; black stays as it is, to the bit."),
    ] = None,
    strength: StrengthOption = 1.0,
    structure: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="How much of the picture's own edges is put back.")
    ] = 0.0,
    stroke_scale: Annotated[float, typer.Option(min=0.1, max=10.0, help="Size of the strokes.")] = 1.0,
    preserve_color: Annotated[
        bool, typer.Option("--preserve-color", help="Keep the picture's colours.")
    ] = False,
    overwrite: OverwriteOption = False,
    model: ModelOption = None,
    vae: VaeOption = None,
    text_encoder: TextEncoderOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
) -> None:
    """Writes pictures in the style of prompts, style files or a style picture.

    Results have the size of the picture. In a folder they are called
    <picture>-<style>.png. The pictures themselves are never replaced, other
    files only with --overwrite.

    \b
    Examples:
      stylemamba stylize photo.jpg --style glass.safetensors -o glass.png
      stylemamba stylize photos/ "ink drawing" "stained glass" -o out/
      stylemamba stylize 'photos/**/*.jpg' --style ink.safetensors --weight 0.7 \\
          --style glass.safetensors --weight 0.3 -o out/
      stylemamba stylize photo.jpg --style glass.safetensors -o glass.png \\
          --vae stabilityai/sd-vae-ft-mse
    """
    prompts = prompts or []
    names = style or []
    _require_quoted(prompts)
    if not (prompts or names or style_image):
        raise typer.BadParameter("wanted a PROMPT, a --style or a --style-image; got none of them.")
    weights = _weights(names, weight)

    # Whatever may be wrong with a file is found before the minutes that a large model takes to load.
    pictures = find_pictures(image)
    sources = [Path(name).stem for name in names] + ([style_image.stem] if style_image else [])
    labels = [" ".join([prompt, *sources]) for prompt in prompts or [""]]
    targets = plan_outputs(pictures, labels, out, overwrite)
    mask_image = None if mask is None else read_picture(mask)
    style_picture = None if style_image is None else read_picture(style_image)

    from ..style import Style

    styles = [Style.load(find_style(name)) for name in names]
    pipe = load_model(model, vae, text_encoder, device, dtype, styles)
    for name, loaded in zip(names, styles, strict=True):
        pipe.load_style(loaded, name=name)
    if names:
        pipe.set_styles(names, weights)
    _require_ability(pipe, bool(prompts), style_image is not None)
    embeds: list[Tensor | None] = [pipe.encode_prompt(prompt) for prompt in prompts] or [None]

    failed = 0
    with progress_bar() as bar:
        task = bar.add_task("stylizing", total=len(pictures) * len(embeds))
        for path in pictures:
            try:
                picture = read_picture(path)
                for prompt_embeds in embeds:
                    result = pipe(
                        picture,
                        prompt_embeds=prompt_embeds,
                        style_image=style_picture,
                        strength=strength,
                        structure=structure,
                        stroke_scale=stroke_scale,
                        preserve_color=preserve_color,
                        mask_image=mask_image,
                    ).images[0]
                    target = targets[path].pop(0)
                    write_picture(result, target)
                    say(target)
                    bar.advance(task)
            except (OSError, ValueError, FloatingPointError) as error:
                if len(pictures) == 1:
                    raise
                failed += 1
                complain(f"Error: {path}: {sentence(error)}")
                bar.advance(task, len(targets[path]))
    if failed:
        complain(f"{failed} of {len(pictures)} pictures could not be stylized.")
        raise typer.Exit(1)


def _require_quoted(prompts: Iterable[str]) -> None:
    for prompt in prompts:
        if Path(prompt).suffix.lower() in READABLE and os.path.exists(prompt):
            raise typer.BadParameter(
                f"{prompt} is a picture where a prompt was expected: for several pictures give their folder, or a "
                "pattern in quotes ('*.jpg')."
            )


def _weights(names: list[str], weights: list[float] | None) -> list[float]:
    if len(set(names)) != len(names):
        raise typer.BadParameter("the same style was given twice: give it once, with a larger --weight.")
    if not weights:
        return [1 / len(names) for _ in names]
    if len(weights) != len(names):
        raise typer.BadParameter(
            f"got {len(names)} styles and {len(weights)} weights, wanted one --weight for each style."
        )
    return weights


def _require_ability(pipe: "StyleMambaPipeline", reads_prompts: bool, sees_style: bool) -> None:
    import torch

    if reads_prompts and pipe.text_encoder is None:
        raise ValueError(
            f"this model has no text encoder, so it reads no prompt: give a style with --style, or a SigLIP checkpoint "
            f"with --text-encoder {_TEXT_ENCODER}."
        )
    if sees_style and pipe.image_encoder is None:
        raise ValueError(
            f"this model has no image encoder, so it sees no style picture: give a style with --style, or a SigLIP "
            f"checkpoint with --text-encoder {_TEXT_ENCODER}."
        )
    if not pipe.styles.active:
        fusion = pipe.fusion
        embeds = torch.ones(1, fusion.config.cond_dim, device=fusion.device, dtype=fusion.dtype)
        latents = torch.rand(1, fusion.config.latent_channels, 8, 8).to(embeds)
        with torch.no_grad():
            unchanged = torch.equal(fusion(latents, embeds), latents)
        if unchanged:
            raise ValueError(
                "this model's fusion is untrained and changes nothing: fit a style with `stylemamba fit` and give it "
                "with --style."
            )
