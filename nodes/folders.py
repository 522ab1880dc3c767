"""Names that a user picks in a node, and the files they stand for.

Responsible for listing models and styles, and for never reading or writing outside of their folders: a name comes from a
workflow, which may come from anybody. Knows nothing of what is in the files.

    models/stylemamba/<model>/model_index.json   a model
    models/stylemamba/styles/*.safetensors       styles, in subfolders too
    models/stylemamba/fits/*.safetensors         what prompt-fits have learnt, by content
    output/*.cube                                tables of colours
"""

import re
from pathlib import Path

from ..weights import bundled_folder, bundled_names, is_image_guided, named_styles
from . import host

STYLES, FITS = "styles", "fits"
_SUFFIX = ".safetensors"
# Windows opens devices under these names, whatever the suffix.
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
MAX_STEM = 100  # letters of a file's name
_FILE_NAME = re.compile(rf"\w[\w .,()+'-]{{0,{MAX_STEM - 1}}}")


def model_names() -> list[str]:
    return [name for name, folder in _models().items() if not is_image_guided(folder)]


def image_guided_names() -> list[str]:
    return [name for name, folder in _models().items() if is_image_guided(folder)]


def find_model(name: str) -> Path:
    return _find(name, model_names(), "model")


def find_image_guided(name: str) -> Path:
    return _find(name, image_guided_names(), "image-guided model")


def _find(name: str, names: list[str], kind: str) -> Path:
    _require(name, names, kind, "a folder that save_pretrained wrote in models/stylemamba")
    folder = _models()[name]
    return folder if bundled_folder(name) is not None else _inside(folder.parent, folder)


def _models() -> dict[str, Path]:
    """Name -> folder: the bundled ones first; of those with one name, the first."""
    found = {}
    for root in reversed(host.model_roots()):
        found |= {index.parent.name: index.parent for index in root.glob("*/model_index.json")}
    bundled = {name: bundled_folder(name) for name in bundled_names()}
    return bundled | {name: found[name] for name in sorted(found.keys() - bundled.keys())}


def style_names() -> list[str]:
    """Files by their path under a styles folder, and then the named styles, which are prompts."""
    found = {
        path.relative_to(folder).as_posix()
        for folder in _style_folders()
        for path in folder.rglob(f"*{_SUFFIX}")
        if not path.name.startswith(".")
    }
    return [*sorted(found), *named_styles()]


def find_style(name: str) -> Path | None:
    """The file of a style; None for a named style."""
    _require(name, style_names(), "style", f"a {_SUFFIX} file in models/stylemamba/{STYLES}")
    if name in named_styles():
        return None
    return next(_inside(folder, folder / name) for folder in _style_folders() if (folder / name).is_file())


def new_style(name: str) -> Path:
    """Where to save a style of that name; a file name, never a path."""
    folder = host.model_roots()[-1] / STYLES
    return _new_file(folder, name, _SUFFIX, f"styles are saved in models/stylemamba/{STYLES}")


def new_table(name: str) -> Path:
    """Where to save a table of colours of that name; a file name, never a path."""
    return _new_file(host.output_folder(), name, ".cube", "tables are saved in ComfyUI's output folder")


def fits_folder() -> Path:
    return host.model_roots()[-1] / FITS


def changed(path: Path) -> str:
    """Differs whenever the file does; for `fingerprint_inputs`."""
    status = path.stat()
    return f"{path} {status.st_mtime_ns} {status.st_size}"


def _new_file(folder: Path, name: str, suffix: str, place: str) -> Path:
    name = name.removesuffix(suffix)
    if not _FILE_NAME.fullmatch(name) or name != name.rstrip(" .") or _RESERVED.fullmatch(name):
        raise ValueError(
            f"got the file name {name!r:.120}, wanted up to {MAX_STEM} letters, digits, spaces and . , ( ) + ' - with a letter or "
            f"digit first: a name without a folder, since {place}."
        )
    folder.mkdir(parents=True, exist_ok=True)
    return _inside(folder, folder / f"{name}{suffix}")


def _style_folders() -> list[Path]:
    return [root / STYLES for root in host.model_roots()]


def _require(name: str, names: list[str], kind: str, place: str) -> None:
    # Again, though the host has checked: a list may have changed since, and a workflow need not come through the page.
    if name not in names:
        raise ValueError(
            f"there is no {kind} {name!r:.120}: put {place}, press R, and choose from the list ({', '.join(names):.300})."
        )


def _inside(folder: Path, path: Path) -> Path:
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"{path.name!r:.120} leads out of {folder.name} to another place of the disk: copy the file itself there, or name "
            "its folder in extra_model_paths.yaml."
        )
    return path
