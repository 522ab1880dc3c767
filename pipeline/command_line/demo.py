"""`stylemamba demo`: every bundled photo in eight styles, on one sheet, without a network."""

from pathlib import Path
from typing import Annotated

import typer

from ...weights import bundled_folder, bundled_photos
from .model_options import DeviceOption, load_model
from .output_files import require_output, require_picture_suffix
from .picture_files import read_picture, write_picture
from .stylize import OverwriteOption
from .terminal import progress_bar, say

_MODEL = "tiny"
# Nobody fitted these; one of each kind: artist, movement, medium, material, light.
_PROMPTS = (
    "in the style of van Gogh",
    "ukiyo-e woodblock print",
    "steel engraving",
    "stained glass window",
    "soft watercolor by Turner",
    "pen and ink line drawing",
    "mosaic of small tiles",
    "neon lights at night",
)
_NEXT = 'Your own: stylemamba stylize photo.jpg "stained glass window" -o glass.jpg'


_SHEET = Path("stylemamba-demo.jpg")


def demo(
    out: Annotated[
        Path,
        typer.Option("-o", "--out", metavar="FILE", help="The sheet to write (.jpg, .png, .webp, .tif)."),
    ] = _SHEET,
    overwrite: OverwriteOption = False,
    device: DeviceOption = None,
) -> None:
    """Shows the bundled photos in eight styles, on one contact sheet.

    \b
    Examples:
      stylemamba demo
      stylemamba demo -o sheet.png --overwrite
    """
    require_picture_suffix(out)
    # A second demo replaces the first one's sheet, and no file of another name.
    require_output(out, overwrite=overwrite or out == _SHEET)
    photos = [read_picture(path) for path in bundled_photos()]
    if bundled_folder(_MODEL) is None or not photos:
        raise FileNotFoundError(
            f"the model {_MODEL!r} or its photos are not bundled with this installation: install it again."
        )

    from .contact_sheet import draw_contact_sheet

    pipe = load_model(_MODEL, None, None, device, "float32")
    rows = []
    with progress_bar() as bar:
        for photo in bar.track(photos, description="stylizing"):
            rows.append([photo, *pipe(photo, list(_PROMPTS)).images])
    write_picture(draw_contact_sheet(["photo", *_PROMPTS], rows), out)
    say(_NEXT)
    say(out)
