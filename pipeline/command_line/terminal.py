"""The terminal: results go to stdout; progress, warnings and errors to stderr. Knows nothing of the commands."""

import logging
import warnings

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

# No markup: brackets in a file name or prompt are brackets.
_stdout = Console(markup=False, emoji=False, highlight=False)
_stderr = Console(markup=False, emoji=False, highlight=False, stderr=True)

# Errors that a user can mend, told in one sentence that says how; anything else also says what kind it is.
_EXPECTED = (OSError, ValueError, FloatingPointError)


def plain(text: object) -> str:
    """One line that a terminal shows and does not obey: prompts and file names may come from strangers."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(text)
    )


def say(text: object) -> None:
    # Where both streams are one screen, only the console of the progress bar can print above the bar.
    console = _stderr if _stdout.is_terminal and _stderr.is_terminal else _stdout
    console.print(plain(text), soft_wrap=True)


def complain(text: object) -> None:
    _stderr.print(plain(text), soft_wrap=True)


def show_table(table: Table) -> None:
    _stdout.print(table)


def sentence(error: Exception) -> str:
    """What went wrong, on one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    of_torch = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)  # on a CPU
    if isinstance(error, MemoryError) or of_torch:
        return "out of memory: give smaller or fewer pictures, --device cpu, or --dtype float16 on a GPU."
    text = " ".join(str(error).split())
    if isinstance(error, _EXPECTED):
        return text
    return f"{type(error).__name__}: {text} (run again with --debug to see where)"


def progress_bar() -> Progress:
    """Vanishes when done, and stays quiet where stderr is no terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=_stderr,
        transient=True,
        redirect_stdout=False,
        disable=not _stderr.is_terminal,
    )


def set_debug(debug: bool) -> None:
    """The level of the package's logger is where `--debug` is kept."""
    logging.getLogger("stylemamba").setLevel(logging.DEBUG if debug else logging.WARNING)


def quiet_libraries() -> None:
    """Silences what diffusers and transformers have to say to developers, unless `--debug` asks for it."""
    if logging.getLogger("stylemamba").isEnabledFor(logging.DEBUG):
        return
    import diffusers.utils.logging
    import huggingface_hub.utils
    import transformers.utils.logging

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()
    if not _stderr.is_terminal:  # on a terminal, a download shows how far it is
        huggingface_hub.utils.disable_progress_bars()
    warnings.simplefilter("ignore", FutureWarning)
    warnings.showwarning = lambda message, *_, **__: complain(f"Warning: {message}")
