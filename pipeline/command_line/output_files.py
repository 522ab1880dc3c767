"""Output files: which file each result goes to, and whether it can be written, before any long work is done for it."""

import os
import re
from pathlib import Path

import typer

from .picture_files import WRITABLE


def plan_outputs(
    pictures: list[Path], labels: list[str], out: str | None, overwrite: bool
) -> dict[Path, list[Path]]:
    """Picture -> the file of each of its results, one for each label, all checked: none is an input, and none is there
    already unless `overwrite` says so. `out` is a file for a single result, else a folder."""
    single = len(pictures) * len(labels) == 1
    if names_a_file(out):
        require_picture_suffix(Path(out))
        if not single:
            raise typer.BadParameter(
                f"{len(pictures)} pictures in {len(labels)} styles do not go into the one file {out}: give a folder."
            )
        targets = {pictures[0]: [Path(out)]}
    else:
        taken: set[Path] = set()
        targets = {
            path: [_free_name(Path(out or "."), f"{path.stem}-{_slug(label)}", taken) for label in labels]
            for path in pictures
        }
    inputs = {path.resolve() for path in pictures}
    for target in (target for several in targets.values() for target in several):
        if target.resolve() in inputs:
            raise FileExistsError(f"{target} is one of the pictures to stylize: give another name with -o.")
        require_output(target, overwrite=overwrite)
    return targets


def names_a_file(out: str | None) -> bool:
    """Whether `-o` is meant as a file: anything with an ending that is no folder, and not written as one."""
    return (
        out is not None
        and Path(out).suffix != ""
        and not out.endswith(("/", os.sep))
        and not os.path.isdir(out)
    )


def require_picture_suffix(path: Path) -> None:
    if path.suffix.lower() not in WRITABLE:
        raise ValueError(
            f"{path} ends in {path.suffix!r}, wanted one of {', '.join(WRITABLE)}, or a folder for several results."
        )


def require_output(path: Path, *, overwrite: bool = False) -> None:
    """Checks that a file can be written there, before any long work is done for it."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, wanted the name of a file in it.")
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists already: give another name with -o, or --overwrite to replace it."
        )
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {folder} is a file, not a folder.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{path} cannot be written: there is no permission to write in {folder}.")


def _slug(label: str) -> str:
    return re.sub(r"[\W_]+", "-", label.lower()).strip("-")[:60].rstrip("-") or "style"


def _free_name(folder: Path, stem: str, taken: set[Path]) -> Path:
    """photo.jpg and photo.png, or two prompts with one beginning, are told apart by a number."""
    path, number = folder / f"{stem}.png", 1
    while path in taken:
        number += 1
        path = folder / f"{stem}-{number}.png"
    taken.add(path)
    return path
