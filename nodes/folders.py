"""Names that a user picks in a node, and the files they stand for.

Responsible for listing models and styles, and for never reading or writing outside of their folders: a name comes from a
workflow, which may come from anybody. Knows nothing of what is in the files.

    models/stylemamba/<model>/model_index.json   a model
    models/stylemamba/styles/*.safetensors       styles, in subfolders too
    models/stylemamba/fits/*.safetensors         what prompt-fits have learnt, by content
"""

import re
from pathlib import Path

from ..weights import bundled_folder, bundled_names
from . import host

STYLES, FITS = "styles", "fits"
_SUFFIX = ".safetensors"
# Windows opens devices under these names, whatever the suffix.
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_FILE_NAME = re.compile(r"\w[\w .,()+'-]{0,99}")


def model_names() -> list[str]:
    found = {folder.parent.name for root in host.model_roots() for folder in root.glob("*/model_index.json")}
    bundled = bundled_names()
    return [*bundled, *sorted(found.difference(bundled))]


def find_model(name: str) -> Path:
    _require(name, model_names(), "model", "a folder that save_pretrained wrote in models/stylemamba")
    bundled = bundled_folder(name)
    if bundled is not None:
        return bundled
    return next(
        _inside(root, root / name)
        for root in host.model_roots()
        if (root / name / "model_index.json").is_file()
    )


def style_names() -> list[str]:
    """Files by their path under a styles folder."""
    found = {
        path.relative_to(folder).as_posix()
        for folder in _style_folders()
        for path in folder.rglob(f"*{_SUFFIX}")
        if not path.name.startswith(".")
    }
    return sorted(found)


def find_style(name: str) -> Path:
    _require(name, style_names(), "style", f"a {_SUFFIX} file in models/stylemamba/{STYLES}")
    return next(_inside(folder, folder / name) for folder in _style_folders() if (folder / name).is_file())


def new_style(name: str) -> Path:
    """Where to save a style of that name; a file name, never a path."""
    name = name.removesuffix(_SUFFIX)
    if not _FILE_NAME.fullmatch(name) or name != name.rstrip(" .") or _RESERVED.fullmatch(name):
        raise ValueError(
            f"got the file name {name!r:.120}, wanted up to 100 letters, digits, spaces and . , ( ) + ' - with a letter or "
            f"digit first: a name without a folder, since styles are saved in models/stylemamba/{STYLES}."
        )
    folder = host.model_roots()[-1] / STYLES
    folder.mkdir(parents=True, exist_ok=True)
    return _inside(folder, folder / f"{name}{_SUFFIX}")


def fits_folder() -> Path:
    return host.model_roots()[-1] / FITS


def changed(path: Path) -> str:
    """Differs whenever the file does; for `fingerprint_inputs`."""
    status = path.stat()
    return f"{path} {status.st_mtime_ns} {status.st_size}"


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
