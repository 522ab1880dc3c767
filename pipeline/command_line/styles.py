"""`stylemamba styles`: the library of styles. Lists, shows, renames and verifies them, and mixes them on a picture."""

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ...weights import named_styles, thumbnail_of
from .model_options import DeviceOption, DtypeOption, ModelOption, VaeOption, load_model
from .output_files import require_output, require_picture_suffix
from .picture_files import read_picture, write_picture
from .stylize import (
    ImageArgument,
    MixOption,
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
    """Lists, shows, mixes, renames and verifies styles.

    \b
    Examples:
      stylemamba styles list
      stylemamba styles show glass.safetensors
      stylemamba styles sheet -o styles.jpg
      stylemamba styles blend photo.jpg glass.safetensors ink.safetensors
    """


@styles.command("list")
def list_styles(
    folder: Annotated[Path | None, typer.Argument(metavar="FOLDER", show_default="the named styles")] = None,
) -> None:
    """Lists the named styles, which are prompts, or the style files of a folder.

    Both may be given wherever --style is wanted.

    \b
    Examples:
      stylemamba styles list
      stylemamba styles list my-styles/
    """
    if folder is None:
        table = Table("name", "prompt")
        for name, prompt in named_styles().items():
            table.add_row(name, prompt)
        show_table(table)
        return
    paths = _style_files(folder)

    from ..style import Style, StyleFileError

    table = Table("file", "title", "prompt", "autoencoder", "size")
    for path in paths:
        try:
            style = Style.load(path)
        except StyleFileError as error:
            complain(f"Skipped: {error}")
            continue
        base = style.info.get("base", {}).get("vae", {})
        table.add_row(
            plain(path.name),
            plain(style.info.get("title", "")),
            plain(style.prompt),
            plain(base.get("name") or base.get("class", "")),
            _size(path),
        )
    if table.row_count:
        show_table(table)
    else:
        say(f"No style file in {folder}.")


@styles.command()
def show(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A style file, or a named style.")],
    thumbnail: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Also write the style's small picture there.")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Shows what a style says of itself: prompt, models, settings, losses.

    \b
    Examples:
      stylemamba styles show glass.safetensors
      stylemamba styles show glass.safetensors --thumbnail glass.jpg
    """
    if thumbnail is not None:
        require_picture_suffix(thumbnail)
        require_output(thumbnail, overwrite=overwrite)

    if file in named_styles() and not Path(file).is_file():
        say(f"{file}: {named_styles()[file]}")
        if thumbnail is not None:
            write_picture(read_picture(thumbnail_of(file)), thumbnail)
            say(thumbnail)
        return

    from ..style import Style

    path = Path(file)
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
def sheet(
    folder: Annotated[Path | None, typer.Argument(metavar="FOLDER", show_default="the named styles")] = None,
    out: Annotated[
        Path,
        typer.Option("-o", "--out", metavar="FILE", help="The sheet to write (.jpg, .png, .webp, .tif)."),
    ] = Path("styles.jpg"),
    columns: Annotated[int, typer.Option(min=1, max=32)] = 6,
    overwrite: OverwriteOption = False,
) -> None:
    """Draws the thumbnails of all styles on one contact sheet.

    \b
    Examples:
      stylemamba styles sheet
      stylemamba styles sheet my-styles/ -o my-styles.png
    """
    require_picture_suffix(out)
    require_output(out, overwrite=overwrite)
    shown = [] if folder else [(name, read_picture(thumbnail_of(name))) for name in named_styles()]

    from ..style import Style, StyleFileError
    from .contact_sheet import draw_grid

    for path in _style_files(folder) if folder else []:
        try:
            style = Style.load(path)
        except StyleFileError as error:
            complain(f"Skipped: {error}")
            continue
        if style.thumbnail is None:
            complain(f"Skipped: {path} holds no thumbnail.")
            continue
        shown.append((style.info.get("title") or path.stem, style.thumbnail))
    if not shown:
        raise FileNotFoundError(f"no style with a thumbnail in {folder}: give another folder.")
    write_picture(draw_grid(shown, columns), out)
    say(out)


@styles.command()
def rename(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A style file.")],
    title: Annotated[str, typer.Argument(metavar="TITLE", help="What lists and model browsers show.")],
) -> None:
    """Gives a style file another title. The file keeps its name, and its style.

    \b
    Examples:
      stylemamba styles rename glass.safetensors "Cathedral glass, blue"
    """
    if not title.strip():
        raise typer.BadParameter("TITLE is empty, wanted a few words.")

    from ..style import Style

    style = Style.load(file)
    require_output(file, overwrite=True)
    style.info["title"] = title.strip()
    style.save(file)
    say(f"{file}: {title.strip()}")


@styles.command()
def verify(
    files: Annotated[list[str], typer.Argument(metavar="STYLE", help="Style files, or folders of them.")],
    model: ModelOption = None,
    vae: VaeOption = None,
) -> None:
    """Checks that style files are whole and safe to load and, with --model or --vae, that they fit it.

    Exit code 1 if one does not.

    \b
    Examples:
      stylemamba styles verify glass.safetensors
      stylemamba styles verify my-styles/ --vae stabilityai/sd-vae-ft-mse
    """
    from ..style import Style, StyleFileError

    paths = [
        path for name in files for path in (_style_files(Path(name)) if Path(name).is_dir() else [Path(name)])
    ]
    loaded, failed = {}, 0
    for path in paths:
        try:
            loaded[path] = Style.load(path)
        except StyleFileError as error:
            complain(f"Error: {error}")
            failed += 1
    if (model or vae) and loaded:
        pipe = load_model(model, vae, None, "cpu", "float32", list(loaded.values()))
        for path, style in list(loaded.items()):
            try:
                pipe.load_style(style, name=str(path))
            except StyleFileError as error:
                complain(f"Error: {path}: {error}")
                failed += 1
                del loaded[path]
    for path, style in loaded.items():
        say(f"{path}: whole, {style.prompt!r}")
    if failed:
        complain(f"{failed} of {len(paths)} styles could not be used.")
        raise typer.Exit(1)


@styles.command()
def blend(
    image: ImageArgument,
    files: Annotated[
        list[str], typer.Argument(metavar="STYLE", help="Style files, or names of `stylemamba styles list`.")
    ],
    weight: WeightOption = None,
    mix: MixOption = "linear",
    out: OutOption = None,
    strength: StrengthOption = 1.0,
    overwrite: OverwriteOption = False,
    model: ModelOption = None,
    vae: VaeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
) -> None:
    """Applies a mix of styles to pictures.

    Prompts are mixed into one. Of style files the results are mixed: each keeps
    its own network, so no single style file can hold the mix.

    \b
    Examples:
      stylemamba styles blend photo.jpg mosaic ink-wash
      stylemamba styles blend photos/ glass.safetensors ink.safetensors \\
          --weight 0.7 --weight 0.3 -o out/
    """
    stylize(
        image, style=files, weight=weight, mix=mix, out=out, strength=strength, overwrite=overwrite,
        model=model, vae=vae, device=device, dtype=dtype,
    )  # fmt: skip


def _style_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise NotADirectoryError(
            f"{folder} is not a folder: give one, or `stylemamba styles show` for a file."
        )
    return sorted(folder.glob("*.safetensors"))


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
