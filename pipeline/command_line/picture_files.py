"""Picture files: which ones a user means, reading them upright and in sRGB, writing them whole or not at all.

Knows nothing of models; what happens to the pixels in memory is in `images.py`.
"""

import glob
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..atomic_write import atomic_write

if TYPE_CHECKING:
    from PIL import Image

# Suffixes that results may have, with Pillow's arguments for them: no visible loss.
WRITABLE = {
    ".png": {},
    ".jpg": {"quality": 95, "subsampling": 0},
    ".jpeg": {"quality": 95, "subsampling": 0},
    ".webp": {"quality": 95},
    ".tif": {"compression": "tiff_lzw"},
    ".tiff": {"compression": "tiff_lzw"},
}
# What is picked up from a folder; a file named by itself may be any that Pillow reads.
READABLE = {*WRITABLE, ".bmp"}
VIDEOS = {".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg"}


def find_pictures(source: str) -> list[Path]:
    """A picture, a folder (its pictures, not those of folders inside it) or a glob pattern -> at least one file."""
    path = Path(source)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in READABLE and p.is_file())
        if not found:
            raise FileNotFoundError(f"the folder {source} holds no picture ({', '.join(sorted(READABLE))}).")
    elif path.exists():
        found = [path]
    elif glob.has_magic(source):
        found = sorted(Path(name) for name in glob.glob(source, recursive=True) if os.path.isfile(name))
        if not found:
            raise FileNotFoundError(f"the pattern {source} matches no file.")
    else:
        raise FileNotFoundError(f"{source} does not exist: give a picture, a folder or a quoted pattern.")
    videos = [one for one in found if one.suffix.lower() in VIDEOS]
    if videos:
        raise ValueError(
            f"{videos[0]} is a video among pictures: give `stylemamba stylize` one video by itself."
        )
    return found


def read_picture(path: Path) -> "Image.Image":
    """The picture as a viewer shows it: turned as its EXIF says, in sRGB."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            return _to_srgb(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: give a picture.") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"{path} is no picture that Pillow can read.") from None
    except PermissionError:
        raise
    except Exception as error:  # decoders meet damaged files with errors of every kind
        raise ValueError(f"{path} cannot be read, it may be damaged or cut off: {error}") from error


def write_picture(image: "Image.Image", path: Path) -> None:
    """The suffix of `path` decides the format; JPEG gets a white ground where the picture is transparent."""
    suffix = path.suffix.lower()
    if image.mode == "RGBA" and suffix in (".jpg", ".jpeg"):
        from PIL import Image

        ground = Image.new("RGB", image.size, "white")
        ground.paste(image, mask=image.getchannel("A"))
        image = ground
    with atomic_write(path) as part:
        image.save(part, **WRITABLE[suffix])


def _to_srgb(image: "Image.Image") -> "Image.Image":
    """Models expect sRGB, and results carry no profile. A profile that is broken or belongs to another kind of picture
    is ignored, as viewers do; Pillow converts no picture of 16 bits."""
    from PIL import ImageCms

    profile = image.info.get("icc_profile")
    if not profile or image.mode.startswith(("I", "F")):
        return image
    mode = "RGBA" if image.has_transparency_data else "RGB"
    ready = image if image.mode in ("CMYK", "L") and mode == "RGB" else image.convert(mode)
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(ready, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError):
        return image
