"""The command `stylemamba`: its commands, its exit codes, and what becomes of an error.

Exit codes: 0 done, 1 failed, 2 bad usage, 130 stopped with Ctrl-C. The commands are in modules of their own, which
import torch and the models only when they run.
"""

import sys
from importlib.metadata import version
from typing import Annotated

import typer
from typer.core import TyperGroup

from .bench import bench
from .demo import demo
from .doctor import doctor
from .fit import fit
from .score import score
from .styles import styles
from .stylize import stylize
from .terminal import complain, say, sentence, set_debug


class _Commands(TyperGroup):
    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        # Wanted after something went wrong, so it may also be added at the end.
        if "--debug" in args[:end]:
            args = ["--debug", *(arg for arg in args[:end] if arg != "--debug"), *args[end:]]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: typer.Context):
        set_debug(ctx.params["debug"])
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            complain("Stopped.")
            raise typer.Exit(130) from None
        except Exception as error:
            # Typer's own exceptions (bad usage, an exit that was asked for) know their exit codes.
            if ctx.params["debug"] or hasattr(error, "exit_code"):
                raise
            complain(f"Error: {sentence(error)}")
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        say(version("stylemamba"))
        raise typer.Exit


@app.callback()
def stylemamba(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and what the libraries have to say.")
    ] = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Text-driven image style transfer that keeps every pixel in place.

    Works without a network, unless a Hub id or torchvision's weights are asked
    for. Writes what is named with -o, or beside where it was started.

    \b
    Examples:
      stylemamba demo
      stylemamba stylize photo.jpg "stained glass window" -o glass.jpg
      stylemamba fit "ink drawing" photo.jpg -o ink.safetensors
      stylemamba stylize photos/ --style ink.safetensors -o out/
    """


for command in (demo, stylize, fit):
    app.command()(command)
app.add_typer(styles, name="styles")
for command in (score, bench, doctor):
    app.command()(command)


def main() -> None:
    # A file name or prompt may hold what the terminal's encoding lacks.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")
    app()
