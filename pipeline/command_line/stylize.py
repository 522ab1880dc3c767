"""`stylemamba stylize`: pictures or a video, and prompts or styles, in; files out."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...weights import named_styles
from ..presets import PRESETS, preset
from .model_options import (
    DeviceOption,
    DtypeOption,
    ModelOption,
    TextEncoderOption,
    VaeOption,
    full_name,
    holds_image_guided,
    load_image_guided,
    load_model,
)
from .output_files import plan_outputs, require_output
from .picture_files import READABLE, VIDEOS, find_pictures, read_picture, write_picture
from .terminal import complain, progress_bar, say, sentence
from .video_files import plan_video, stylize_video

if TYPE_CHECKING:
    from ..image_guided_pipeline import ImageGuidedPipeline
    from ..pipeline_stylemamba import StyleMambaPipeline
    from ..prompts import Prompt
    from ..style import Style

_TEXT_ENCODER = "google/siglip-base-patch16-224"
_KEEP, _PLACE, _IMAGE_GUIDED = "What is kept", "Where", "For --model samam and mamba-st"

ImageArgument = Annotated[
    str,
    typer.Argument(metavar="IMAGE", help="A picture, a folder of pictures, a quoted pattern, or a video."),
]
OutOption = Annotated[
    str | None,
    typer.Option(
        "-o",
        "--out",
        metavar="OUT",
        help="A picture file (.png, .jpg, .webp, .tif) or video (.mp4, .mkv, .webm) for one result, else a folder.",
        show_default="the current folder",
    ),
]
WeightOption = Annotated[
    list[float] | None,
    typer.Option(
        "--weight",
        metavar="W",
        help="One for each style, style image or prompt: then the prompts are mixed into one.",
        show_default="equal shares",
    ),
]
MixOption = Annotated[
    str, typer.Option(metavar="linear|slerp", help="How prompts, styles and a style picture are mixed.")
]
StrengthOption = Annotated[
    float | None,
    typer.Option(
        min=0.0, max=1.5, help="0 is the autoencoder's reconstruction, 1 the style.", show_default="1"
    ),
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
            metavar="STYLE",
            help="A style file, or a name from `stylemamba styles list`; several are mixed by --weight.",
        ),
    ] = None,
    weight: WeightOption = None,
    mix: MixOption = "linear",
    style_image: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A picture in place of a prompt, or mixed with it half and half; with --model samam or mamba-st "
            "several are mixed by --weight.",
        ),
    ] = None,
    preset_name: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="|".join(PRESETS),
            help="Settings for a task; options beside it come first.",
        ),
    ] = None,
    strength: StrengthOption = None,
    stroke_scale: Annotated[
        float | None,
        typer.Option(
            min=0.1, max=10.0, help="Size of the strokes, in parts of the picture.", show_default="1"
        ),
    ] = None,
    structure: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="How much of the picture's own edges is put back, the finest first.",
            show_default="0",
            rich_help_panel=_KEEP,
        ),
    ] = None,
    shading: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="How much of the picture's broad light and dark is kept.",
            show_default="0",
            rich_help_panel=_KEEP,
        ),
    ] = None,
    preserve_color: Annotated[
        bool, typer.Option("--preserve-color", help="Keep the picture's colours.", rich_help_panel=_KEEP)
    ] = False,
    preserve_palette: Annotated[
        bool,
        typer.Option(
            "--preserve-palette",
            help="Paint with the picture's colours, wherever the style wants them.",
            rich_help_panel=_KEEP,
        ),
    ] = False,
    tone_only: Annotated[
        bool,
        typer.Option("--tone-only", help="Take the colours of the style, no texture.", rich_help_panel=_KEEP),
    ] = False,
    cube: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With one picture: also write the tone as a 3-D table (.cube) for video editors.",
            rich_help_panel=_KEEP,
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="White where to stylize; black stays as it is, to the bit.",
            rich_help_panel=_PLACE,
        ),
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MASK=STYLE",
            help="A mask file and what to paint there: a prompt or a style. Later ones lie over earlier ones.",
            rich_help_panel=_PLACE,
        ),
    ] = None,
    feather: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="PX",
            help="Fade out inside the edge of masks.",
            show_default="0",
            rich_help_panel=_PLACE,
        ),
    ] = None,
    protect_text: Annotated[
        bool, typer.Option("--protect-text", help="Keep text legible.", rich_help_panel=_PLACE)
    ] = False,
    deflicker: Annotated[
        float,
        typer.Option(min=0.0, max=0.95, help="For videos: how much a frame leans on the one before it."),
    ] = 0.9,
    tile: Annotated[
        int | None,
        typer.Option(
            metavar="PX", help="Work in tiles of this side, for little memory.", show_default="as needed"
        ),
    ] = None,
    shuffles: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Mamba-ST: mean over so many random orders of the style's parts.",
            show_default="0",
            rich_help_panel=_IMAGE_GUIDED,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="Of those orders.", show_default="0", rich_help_panel=_IMAGE_GUIDED),
    ] = None,
    overwrite: OverwriteOption = False,
    model: ModelOption = None,
    vae: VaeOption = None,
    text_encoder: TextEncoderOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
) -> None:
    """Writes pictures or videos in the style of prompts, style files or a style picture.

    Results have the size of the picture. In a folder they are called
    <picture>-<style>.png. The pictures themselves are never replaced, other
    files only with --overwrite. No random numbers are drawn, but for --shuffles
    by its --seed: the same command gives the same result.

    \b
    Examples:
      stylemamba stylize photo.jpg --style stained-glass -o glass.png
      stylemamba stylize photos/ "ink drawing" "stained glass" -o out/
      stylemamba stylize photo.jpg "ink drawing" "watercolor" \\
          --weight 0.7 --weight 0.3 -o mixed.png
      stylemamba stylize photo.jpg -o two.png --feather 8 \\
          --region sky.png=watercolor --region house.png="stained glass"
      stylemamba stylize clip.mp4 "ukiyo-e woodblock print" -o print.mp4
      stylemamba stylize photo.jpg "dark blue tone" --preset cinematic \\
          --cube tone.cube -o graded.png
      stylemamba stylize photo.jpg --style-image painting.jpg --model samam
    """
    prompts, style_images = prompts or [], style_image or []
    _require_quoted(prompts)
    model = full_name(model)
    image_guided = holds_image_guided(model)
    if mix not in ("linear", "slerp"):
        raise typer.BadParameter(f"--mix is {mix!r}, wanted linear or slerp.")
    if not (prompts or style or style_images or region):
        raise typer.BadParameter(
            "wanted a PROMPT, a --style, a --style-image or a --region; got none of them."
        )
    if region and (prompts or style or style_images or mask):
        raise typer.BadParameter(
            "--region says where and what to paint: leave PROMPT, --style and --mask out."
        )
    if preserve_color and preserve_palette:
        raise typer.BadParameter("--preserve-color and --preserve-palette exclude each other: give one.")
    settings = _settings(
        preset_name,
        strength=strength,
        stroke_scale=stroke_scale,
        structure=structure,
        shading=shading,
        feather=feather,
        preserve_color="palette" if preserve_palette else preserve_color or None,
        tone_only=tone_only or None,
        protect_text=protect_text or None,
    )
    weighs_pictures = image_guided and style_images
    choice = _choose(prompts, style or [], None if weighs_pictures else weight)
    regions = [_read_region(text) for text in region or []]
    if image_guided:
        refused = {"--region": regions, "--vae": vae, "--text-encoder": text_encoder, "--tile": tile}
        refused |= {
            "a fitted style": choice.files,
            "--mix slerp": mix == "slerp",
            "a video": _is_video(image),
        }
        _require_image_guided(model, style_images, choice, weight, refused)
    else:
        if len(style_images) > 1:
            raise typer.BadParameter(
                f"got {len(style_images)} times --style-image: give one, or mix several with --model samam or mamba-st."
            )
        if shuffles is not None or seed is not None:
            raise typer.BadParameter("--shuffles and --seed belong to --model mamba-st: leave them out.")

    sources = [*choice.sources, *(path.stem for path in style_images)]
    labels = ["regions"] if regions else [" ".join([label, *sources]).strip() for label in choice.labels]

    # Whatever may be wrong with a file is found before the minutes that a large model takes to load.
    if _is_video(image):
        if mask or cube or regions:
            raise typer.BadParameter("--mask, --region and --cube belong to pictures; got a video.")
        if len(choice.labels) != 1:
            raise typer.BadParameter(
                f"a video takes one style, got {len(choice.labels)}: give one, or mix them by --weight."
            )
        plan = plan_video(Path(image), labels[0], out, overwrite)
    else:
        plan = None
        pictures = find_pictures(image)
        targets = plan_outputs(pictures, labels, out, overwrite)
        if cube is not None:
            if len(pictures) * len(labels) != 1 or regions:
                raise typer.BadParameter(
                    "--cube holds the tone of one result: give one picture and one style."
                )
            if cube.suffix.lower() != ".cube":
                raise typer.BadParameter(f"--cube {cube} ends in {cube.suffix!r}, wanted .cube.")
            require_output(cube, overwrite=overwrite)
    mask_image = None if mask is None else _read_mask(mask)
    region_masks = [_read_mask(r.mask) for r in regions]
    style_pictures = [read_picture(path) for path in style_images]

    # What to ask the pipeline for, once for each label.
    if image_guided:
        pipe = load_image_guided(model, device, dtype)
        calls = _image_guided_calls(pipe, style_pictures, weight, choice, shuffles, seed)
    else:
        from ..style import Style

        files = list(dict.fromkeys([*choice.files, *(r.style for r in regions if r.style)]))
        styles = {name: Style.load(name) for name in files}
        pipe = load_model(model, vae, text_encoder, device, dtype, list(styles.values()))
        if tile is not None:
            pipe.enable_tiling(tile)
        _load_styles(pipe, styles, choice, mix)
        _require_ability(
            pipe,
            reads_prompts=bool(choice.prompts) or any(r.prompt for r in regions),
            sees_style=bool(style_images),
            has_styles=bool(styles),
        )
        settings |= {"style_image": style_pictures[0] if style_pictures else None, "mix": mix}
        embeds = [pipe.encode_prompt(p, mix=mix) for p in choice.prompts] or [None]
        calls = [{"prompt_embeds": one} for one in embeds]

    if plan is not None:
        stylize_video(pipe, plan, calls[0] | settings, deflicker)
        return

    failed = 0
    with progress_bar() as bar:
        task = bar.add_task("stylizing", total=len(pictures) * len(labels))
        for path in pictures:
            try:
                picture = read_picture(path)
                for number, target in enumerate(targets[path]):
                    if regions:
                        result = _paint_regions(pipe, picture, regions, region_masks, settings)
                    else:
                        result = pipe(picture, mask_image=mask_image, **calls[number], **settings).images[0]
                    if cube is not None:
                        _write_cube(pipe, picture, calls[number] | settings, cube, labels[number], overwrite)
                    write_picture(result, target)
                    say(target)
                    bar.advance(task)
            except (OSError, ValueError, FloatingPointError) as error:
                if len(pictures) == 1:
                    raise
                failed += 1
                complain(f"Error: {path}: {sentence(error)}")
                bar.advance(task, sum(not target.exists() for target in targets[path]))
    if failed:
        complain(f"{failed} of {len(pictures)} pictures could not be stylized.")
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Choice:
    """What is to be painted: rows of prompts, or style files with their weights."""

    prompts: list["Prompt"] = field(default_factory=list)
    files: dict[str, float] = field(default_factory=dict)
    labels: list[str] = field(default_factory=lambda: [""])

    @property
    def sources(self) -> list[str]:
        return [Path(name).stem for name in self.files]


def _choose(prompts: list[str], styles: list[str], weights: list[float] | None) -> _Choice:
    """Prompts, and the names of styles, which stand for a prompt or for a file; `weights` mix the prompts into one, or
    the files where there are any."""
    known = named_styles()
    named = [name for name in styles if name in known and not os.path.isfile(name)]
    files = [name for name in styles if name not in named]
    if named and files:
        raise typer.BadParameter(
            f"{named[0]} is a prompt and {files[0]} a fitted style: mix styles of one kind, or apply one after the other."
        )
    if len(set(styles)) != len(styles):
        raise typer.BadParameter("the same style was given twice: give it once, with a larger --weight.")
    texts, labels = [*prompts, *(known[name] for name in named)], [*prompts, *named]
    mixed = files or ((weights or len(named) > 1) and texts) or []
    if weights and len(weights) != len(mixed):
        kind = "styles" if files else "prompts and styles"
        raise typer.BadParameter(
            f"got {len(mixed)} {kind} and {len(weights)} weights, wanted one --weight for each."
        )
    shares = weights or [1 / len(mixed) for _ in mixed]
    if weights and abs(sum(weights)) < 1e-8:
        raise typer.BadParameter(f"the weights {weights} sum to 0: wanted something to be left over.")
    if files:
        used = {name: share for name, share in zip(files, shares, strict=True) if share}
        return _Choice(list(prompts), used, prompts or [""])
    if mixed:
        pairs = [(text, share) for text, share in zip(texts, shares, strict=True) if share]
        return _Choice([[pairs]], {}, [" ".join(labels)])
    return _Choice(texts, {}, labels or [""])


def _settings(name: str | None, **given) -> dict:
    """Those of the preset, with what was asked for beside it."""
    try:
        settings = {} if name is None else preset(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return settings | {option: value for option, value in given.items() if value is not None}


@dataclass(frozen=True)
class _Region:
    mask: Path
    prompt: str | None
    style: str | None


def _read_region(text: str) -> _Region:
    mask, equals, what = text.partition("=")
    if not (mask and equals and what.strip()):
        raise typer.BadParameter(f"--region {text!r} is not MASK=STYLE, such as sky.png=watercolor.")
    if what in named_styles() and not os.path.isfile(what):
        return _Region(Path(mask), named_styles()[what], None)
    is_file = what.endswith(".safetensors")
    return _Region(Path(mask), None if is_file else what, what if is_file else None)


def _read_mask(path: Path):
    mask = read_picture(path)
    if mask.convert("L").getextrema()[1] == 0:
        raise ValueError(f"{path} is black everywhere: paint the mask white where to stylize.")
    return mask


def _paint_regions(pipe: "StyleMambaPipeline", picture, regions: list[_Region], masks: list, settings: dict):
    from ..regions import Region, stylize_regions

    parts = [Region(mask, r.prompt, r.style) for r, mask in zip(regions, masks, strict=True)]
    return stylize_regions(pipe, picture, parts, **settings)[0]


def _write_cube(pipe, picture, call: dict, path: Path, title: str, overwrite: bool) -> None:
    from ..images import read_images
    from ..lut import fit_lut, write_cube

    rgb = read_images(picture)[0].rgb
    painted = pipe(rgb, output_type="pt", **{**call, "tone_only": False}).images
    write_cube(fit_lut(rgb, painted.cpu()), path, title or "StyleMamba", overwrite=overwrite)
    say(path)


def _load_styles(pipe: "StyleMambaPipeline", styles: dict[str, "Style"], choice: _Choice, mix: str) -> None:
    for name, loaded in styles.items():
        pipe.load_style(loaded, name=name)
    if choice.files:
        pipe.set_styles(list(choice.files), list(choice.files.values()), mix=mix)


def _is_video(image: str) -> bool:
    return Path(image).suffix.lower() in VIDEOS and os.path.isfile(image)


def _require_image_guided(
    model: str, style_images: list[Path], choice: _Choice, weights: list[float] | None, refused: dict
) -> None:
    for name, given in refused.items():
        if given:
            raise typer.BadParameter(
                f"--model {model} has no use for {name}: leave it out, or leave --model out for a StyleMamba."
            )
    if bool(style_images) == bool(choice.prompts):
        given = "both" if style_images else "neither"
        raise typer.BadParameter(
            f"--model {model} wants pictures with --style-image, or a PROMPT if it reads any; got {given}."
        )
    if style_images and weights and len(weights) != len(style_images):
        raise typer.BadParameter(
            f"got {len(style_images)} style images and {len(weights)} weights, wanted one --weight for each."
        )


def _image_guided_calls(
    pipe: "ImageGuidedPipeline",
    style_pictures: list,
    weights: list[float] | None,
    choice: _Choice,
    shuffles: int | None,
    seed: int | None,
) -> list[dict]:
    import torch

    if choice.prompts and not pipe.reads_prompts:
        raise ValueError(
            "this model reads no prompt: give pictures with --style-image, or leave --model out."
        )
    drawn = {"shuffles": shuffles or 0, "generator": torch.Generator().manual_seed(seed or 0)}
    if not style_pictures:
        return [{"prompt": prompt, **drawn} for prompt in choice.prompts]
    weights = weights or [1.0] * len(style_pictures)
    return [{"style_image": list(zip(style_pictures, weights, strict=True)), **drawn}]


def _require_quoted(prompts: Iterable[str]) -> None:
    for prompt in prompts:
        if Path(prompt).suffix.lower() in READABLE and os.path.exists(prompt):
            raise typer.BadParameter(
                f"{prompt} is a picture where a prompt was expected: for several pictures give their folder, or a "
                "pattern in quotes ('*.jpg')."
            )


def _require_ability(
    pipe: "StyleMambaPipeline", *, reads_prompts: bool, sees_style: bool, has_styles: bool
) -> None:
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
    if not has_styles and pipe.style_decoder is None:
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
