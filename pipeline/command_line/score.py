"""`stylemamba score`: measures finished pictures against the picture they were made of."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..atomic_write import atomic_write
from .model_options import VggOption, load_vgg, source_of_model
from .output_files import require_output
from .picture_files import find_pictures, read_picture
from .stylize import OverwriteOption
from .terminal import plain, quiet_libraries, show_table


def score(
    stylized: Annotated[
        str, typer.Argument(metavar="STYLIZED", help="A picture, a folder of them, or a quoted pattern.")
    ],
    content: Annotated[Path, typer.Argument(metavar="CONTENT", help="The one picture they were made of.")],
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Score the style too; wants --text-encoder.")
    ] = None,
    text_encoder: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|HUB-ID", help="A SigLIP checkpoint, best another one than the fit was led by."
        ),
    ] = None,
    vgg: VggOption = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Also write every number there.")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Measures how much content was kept and, given a prompt, how much style was reached.

    Always: ssim, psnr. With --vgg: lpips, VGG content losses, cfsd. With
    --prompt: SigLIP similarities.

    \b
    Examples:
      stylemamba score out.png photo.jpg
      stylemamba score out/ photo.jpg --json scores.json
      stylemamba score out.png photo.jpg --prompt "stained glass" \\
          --text-encoder google/siglip2-base-patch16-224 --vgg torchvision
    """
    if (prompt is None) != (text_encoder is None):
        raise typer.BadParameter("wanted --prompt and --text-encoder together, got one of them.")
    results = find_pictures(stylized)
    if content.is_dir():
        raise typer.BadParameter(f"{content} is a folder, wanted the one picture that all were made of.")
    find_pictures(str(content))
    if json_file is not None:
        require_output(json_file, overwrite=overwrite)
    pictures = [read_picture(path) for path in results]
    original = read_picture(content)

    quiet_libraries()
    from ..loading import load_encoder
    from ..metrics import as_json
    from ..metrics import score as measure

    report = measure(
        pictures,
        original,
        prompt,
        encoder=None if text_encoder is None else load_encoder(source_of_model(text_encoder)),
        perceptual=None if vgg is None else load_vgg(vgg),
    )
    table = Table(
        "score",
        "value",
        "taken by",
        "resolution",
        title=f"mean of {len(results)}",
    )
    for name, row in report.items():
        table.add_row(name, f"{row['value']:.4f}", plain(row["encoder"] or "pixels"), row["resolution"])
    show_table(table)
    if json_file is not None:
        document = {"stylized": [str(path) for path in results], "content": str(content), "scores": report}
        with atomic_write(json_file) as part:
            part.write_text(as_json(document) + "\n", encoding="utf-8")
