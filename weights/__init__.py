"""Models, named styles and photos that come with the package: their names, and where they lie. Needs nothing but
the standard library."""

import json
from pathlib import Path

_HERE = Path(__file__).parent


def registry() -> dict[str, dict]:
    """Name -> what `registry.json` says of it: where it is, its licence, how it was made."""
    return json.loads((_HERE / "registry.json").read_text(encoding="utf-8"))


def bundled_names() -> list[str]:
    """Names that `from_pretrained` takes without a network."""
    return [name for name in registry()["models"] if bundled_folder(name) is not None]


def bundled_folder(name: str) -> Path | None:
    """The folder of a bundled model, or None if no model of that name is bundled."""
    entry = registry()["models"].get(name, {})
    folder = _HERE / entry["folder"] if "folder" in entry else None
    return folder if folder is not None and folder.is_dir() else None


def pipeline_of(folder: Path) -> str | None:
    """The class that `save_pretrained` wrote a folder from, such as "SaMamPipeline"; None if that cannot be read."""
    try:
        return json.loads((folder / "model_index.json").read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError):
        return None


def is_image_guided(folder: Path) -> bool:
    """Whether a folder holds one of StyleMamba's relatives, which follow pictures."""
    return pipeline_of(folder) in ("SaMamPipeline", "MambaSTPipeline")


def bundled_photos() -> list[Path]:
    """Photos of free licences to try a model on."""
    return sorted((_HERE / "photos").glob("*.webp"))


def named_styles() -> dict[str, str]:
    """Name -> prompt, for the bundled model: styles that work out of the box."""
    return json.loads(Path(__file__).with_name("named_styles.json").read_text(encoding="utf-8"))


def thumbnail_of(name: str) -> Path:
    """The small picture of a named style, made by `docs/make_gallery.py`."""
    return Path(__file__).parent / "thumbnails" / f"{name}.webp"
