"""`stylemamba demo`: every bundled photo in every bundled style, on one sheet, without a network."""

from pathlib import Path
from typing import Annotated

import typer

from ...weights import bundled_names, bundled_photos, bundled_styles
from .model_options import DeviceOption, load_model
from .output_files import require_output, require_picture_suffix
from .picture_files import read_picture, write_picture
from .stylize import OverwriteOption
from .terminal import progress_bar, say

_HONEST = (
    "These styles were fitted to paintings; to follow a prompt, fit a style with a SigLIP checkpoint from the Hub: "
    'stylemamba fit "ink drawing" photo.jpg -o ink.safetensors --vae stabilityai/sd-vae-ft-mse --text-encoder '
    "google/siglip-base-patch16-224, then stylemamba stylize photo.jpg --style ink.safetensors --vae "
    "stabilityai/sd-vae-ft-mse."
)


_SHEET = Path("stylemamba-demo.jpg")


def demo(
    out: Annotated[
        Path,
        typer.Option("-o", "--out", metavar="FILE", help="The sheet to write (.jpg, .png, .webp, .tif)."),
    ] = _SHEET,
    overwrite: OverwriteOption = False,
    device: DeviceOption = None,
) -> None:
    """Shows the bundled photos in the bundled styles, on one contact sheet.

    \b
    Examples:
      stylemamba demo
      stylemamba demo -o sheet.png --overwrite
    """
    require_picture_suffix(out)
    # A second demo replaces the first one's sheet, and no file of another name.
    require_output(out, overwrite=overwrite or out == _SHEET)
    name = next((name for name in bundled_names() if bundled_styles(name)), None)
    photos = [read_picture(path) for path in bundled_photos()]
    if name is None or not photos:
        raise FileNotFoundError(
            "no model with styles and photos is bundled with this installation: install it again."
        )

    from ..style import Style
    from .contact_sheet import draw_contact_sheet

    styles = [Style.load(path) for path in bundled_styles(name)]
    titles = [style.info.get("title") or style.prompt for style in styles]
    pipe = load_model(name, None, None, device, "float32")
    rows = [[photo] for photo in photos]
    with progress_bar() as bar:
        task = bar.add_task("stylizing", total=len(styles) * len(photos))
        for style in styles:
            loaded = pipe.load_style(style)
            for row, photo in zip(rows, photos, strict=True):
                row.append(pipe(photo).images[0])
                bar.advance(task)
            pipe.unload_styles(loaded)
    write_picture(draw_contact_sheet(["photo", *titles], rows), out)
    say(_HONEST)
    say(out)
