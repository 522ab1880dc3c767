"""`stylemamba styles`: looks into style files, and mixes them on a picture."""

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ...weights import bundled_names, bundled_styles
from .model_options import DeviceOption, DtypeOption, ModelOption, VaeOption, find_style
from .output_files import require_output, require_picture_suffix
from .picture_files import write_picture
from .stylize import (
    ImageArgument,
    OutOption,
    OverwriteOption,
    StrengthOption,
    WeightOption,
    stylize,
)
from .terminal import complain, plain, say, show_table

styles = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

_BARS = "▁▂▃▄▅▆▇█"
_CURVE = 32  # characters


@styles.callback()
def styles_group() -> None:
    """Lists, shows and mixes style files.

    \b
    Examples:
      stylemamba styles list
      stylemamba styles show glass.safetensors
      stylemamba styles blend photo.jpg glass.safetensors ink.safetensors
    """


@styles.command("list")
def list_styles(
    folder: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", show_default="the bundled styles")
    ] = None,
) -> None:
    """Lists the style files of a folder, or the bundled styles.

    Bundled styles may be named like this wherever a style file is wanted.

    \b
    Examples:
      stylemamba styles list
      stylemamba styles list my-styles/
    """
    if folder is None:
        paths = [path for name in bundled_names() for path in bundled_styles(name)]
        place = "this installation"
    elif folder.is_dir():
        paths, place = sorted(folder.glob("*.safetensors")), str(folder)
    else:
        raise NotADirectoryError(
            f"{folder} is not a folder: give one, or `stylemamba styles show` for a file."
        )

    from ..style import Style, StyleFileError

    table = Table("file" if folder else "name", "title", "prompt", "autoencoder", "size")
    for path in paths:
        try:
            style = Style.load(path)
        except StyleFileError as error:
            complain(f"Skipped: {error}")
            continue
        base = style.info.get("base", {}).get("vae", {})
        table.add_row(
            plain(path.name if folder else path.stem),
            plain(style.info.get("title", "")),
            plain(style.prompt),
            plain(base.get("name") or base.get("class", "")),
            _size(path),
        )
    if table.row_count:
        show_table(table)
    else:
        say(f"No style file in {place}.")


@styles.command()
def show(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A style file, or a bundled style's name.")],
    thumbnail: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Also write the style's small picture there.")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Shows what a style file says of itself: prompt, models, settings, losses.

    \b
    Examples:
      stylemamba styles show glass.safetensors
      stylemamba styles show glass.safetensors --thumbnail glass.jpg
    """
    if thumbnail is not None:
        require_picture_suffix(thumbnail)
        require_output(thumbnail, overwrite=overwrite)

    from ..style import Style

    path = find_style(file)
    style = Style.load(path)
    if thumbnail is not None and style.thumbnail is None:
        raise ValueError(f"{path} holds no thumbnail.")

    info = style.info
    facts = {"title": info.get("title"), "prompt": style.prompt}
    facts |= {name: info.get(name) for name in ("source_prompt", "created", "seed", "steps_done", "stopped")}
    facts |= {part: _of_model(base) for part, base in info.get("base", {}).items()}
    facts["settings"] = _pairs(info.get("config", {}))
    facts["fusion network"] = _pairs(style.fusion_config)
    facts["decoder changes"] = f"{len(style.decoder)} weights" if style.decoder else "none"
    facts["versions"] = _pairs(info.get("versions", {}))
    facts["size"] = _size(path)
    table = Table(show_header=False, title=plain(path))
    for name, value in facts.items():
        if value not in (None, ""):
            table.add_row(plain(name.replace("_", " ")), plain(value))
    show_table(table)

    losses = Table("loss", "first", "last", "lowest", "curve")
    for name, values in info.get("losses", {}).items():
        values = [value for value in values if math.isfinite(value)]
        if values:
            numbers = (f"{value:.4g}" for value in (values[0], values[-1], min(values)))
            losses.add_row(plain(name), *numbers, sparkline(values))
    if losses.row_count:
        show_table(losses)
    if thumbnail is not None:
        write_picture(style.thumbnail, thumbnail)
        say(thumbnail)


@styles.command()
def blend(
    image: ImageArgument,
    files: Annotated[
        list[str], typer.Argument(metavar="STYLE", help="Style files, or names of bundled styles.")
    ],
    weight: WeightOption = None,
    out: OutOption = None,
    strength: StrengthOption = 1.0,
    overwrite: OverwriteOption = False,
    model: ModelOption = None,
    vae: VaeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
) -> None:
    """Applies a mix of styles to pictures.

    A mix is of results: each style keeps its own network, so no single style
    file can hold it.

    \b
    Examples:
      stylemamba styles blend photo.jpg glass.safetensors ink.safetensors
      stylemamba styles blend photos/ glass.safetensors ink.safetensors \\
          --weight 0.7 --weight 0.3 -o out/
    """
    stylize(
        image, style=files, weight=weight, out=out, strength=strength, overwrite=overwrite,
        model=model, vae=vae, device=device, dtype=dtype,
    )  # fmt: skip


def sparkline(values: list[float]) -> str:
    """The course of a loss in a few characters, from its lowest to its highest value."""
    count = min(_CURVE, len(values))
    means = []
    for index in range(count):
        part = values[index * len(values) // count : (index + 1) * len(values) // count]
        means.append(sum(part) / len(part))
    low, span = min(means), (max(means) - min(means)) or 1.0
    return "".join(_BARS[round((mean - low) / span * (len(_BARS) - 1))] for mean in means)


def _of_model(base: dict) -> str:
    return " ".join(str(base[key]) for key in ("class", "name", "fingerprint") if base.get(key))


def _pairs(settings: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
