"""Picture files: what is found, how it is read, how it is written."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from stylemamba.pipeline.command_line.output_files import require_output, require_picture_suffix
from stylemamba.pipeline.command_line.picture_files import (
    WRITABLE,
    find_pictures,
    read_picture,
    write_picture,
)


@pytest.fixture
def picture() -> Image.Image:
    """Red above, green below; 20 wide, 30 high."""
    image = Image.new("RGB", (20, 30), (220, 30, 30))
    image.paste((30, 200, 40), (0, 15, 20, 30))
    return image


def test_a_folder_gives_its_pictures_in_order(tmp_path, picture):
    for name in ("b.png", "a.JPG", "notes.txt"):
        picture.save(tmp_path / name, format="PNG")
    (tmp_path / "inside").mkdir()
    picture.save(tmp_path / "inside" / "c.png")
    assert [path.name for path in find_pictures(str(tmp_path))] == ["a.JPG", "b.png"]
    assert len(find_pictures(f"{tmp_path}/**/*.png")) == 2


def test_a_name_with_brackets_is_a_file_and_not_a_pattern(tmp_path, picture):
    path = tmp_path / "photo [1].png"
    picture.save(path)
    assert find_pictures(str(path)) == [path]


@pytest.mark.parametrize(
    ("name", "reason"), [("", "holds no picture"), ("*.png", "matches no file"), ("a.png", "does not exist")]
)
def test_nothing_found(tmp_path, name, reason):
    with pytest.raises(FileNotFoundError, match=reason):
        find_pictures(str(tmp_path / name))


def test_a_video_is_no_picture(tmp_path):
    (tmp_path / "clip.MP4").touch()
    with pytest.raises(ValueError, match="clip.MP4 is a video among pictures: give .* one video by itself"):
        find_pictures(str(tmp_path / "clip.MP4"))


def test_exif_orientation_is_applied(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    picture.save(tmp_path / "turned.jpg", exif=exif, quality=100)
    upright = read_picture(tmp_path / "turned.jpg")
    assert upright.size == (30, 20)
    assert upright.getpixel((29, 10))[0] > 180  # the red top is now at the right
    assert upright.getpixel((0, 10))[1] > 180


def test_colours_of_a_profile_become_srgb(tmp_path, picture):
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {bytes(profile[i : i + 4]): i for i in range(132, 132 + 12 * int.from_bytes(profile[128:132]), 12)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]  # a screen whose first channel is green, and the second red
    profile[red + 4 : red + 12], profile[green + 4 : green + 12] = (
        profile[green + 4 : green + 12],
        profile[red + 4 : red + 12],
    )

    picture.putalpha(Image.new("L", picture.size, 77))
    picture.save(tmp_path / "profile.png", icc_profile=bytes(profile))
    read = read_picture(tmp_path / "profile.png")
    assert read.mode == "RGBA"
    assert np.allclose(read.getpixel((5, 5)), (30, 220, 30, 77), atol=3)


@pytest.mark.parametrize("mode", ["L", "P", "LA", "CMYK", "1", "I;16"])
def test_a_profile_that_does_not_fit_is_ignored(tmp_path, picture, mode):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = tmp_path / "odd.tif"
    odd = Image.fromarray(np.full((30, 20), 40000, np.uint16)) if mode == "I;16" else picture.convert(mode)
    odd.save(path, icc_profile=b"nonsense" if mode == "P" else profile)
    assert read_picture(path).size == (20, 30)


def test_sixteen_bits_are_kept(tmp_path):
    Image.fromarray(np.full((16, 16), 40000, np.uint16)).save(tmp_path / "deep.png")
    assert np.asarray(read_picture(tmp_path / "deep.png")).max() == 40000


@pytest.mark.parametrize("kind", ["text", "cut off", "empty", "bomb"])
def test_damaged_pictures_are_one_error(tmp_path, picture, kind, monkeypatch):
    path = tmp_path / "bad.png"
    buffer = io.BytesIO()
    picture.resize((200, 300)).save(buffer, "PNG")
    contents = {
        "text": b"no picture",
        "cut off": buffer.getvalue()[:-80],
        "empty": b"",
        "bomb": buffer.getvalue(),
    }
    path.write_bytes(contents[kind])
    if kind == "bomb":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="bad.png"):
        read_picture(path)


@pytest.mark.parametrize("suffix", WRITABLE)
def test_every_format_is_written_without_visible_loss(tmp_path, picture, suffix):
    path = tmp_path / f"out{suffix.upper()}"
    write_picture(picture, path)
    difference = np.abs(np.asarray(read_picture(path), int) - np.asarray(picture, int))
    assert (
        difference[[*range(12), *range(18, 30)]].max() < 6
    )  # WebP has half the resolution in colour at the edge
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_transparency_is_kept_or_put_on_white(tmp_path, picture):
    picture.putalpha(Image.new("L", picture.size, 0))
    for suffix, expected in ((".png", (220, 30, 30, 0)), (".jpg", (255, 255, 255))):
        write_picture(picture, tmp_path / f"out{suffix}")
        assert read_picture(tmp_path / f"out{suffix}").getpixel((5, 5)) == expected


def test_outputs_are_checked_before_the_work(tmp_path):
    existing = tmp_path / "there.png"
    existing.touch()
    require_output(tmp_path / "new" / "deeper" / "x.png")
    require_output(existing, overwrite=True)
    with pytest.raises(FileExistsError, match="--overwrite"):
        require_output(existing)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        require_output(tmp_path)
    with pytest.raises(NotADirectoryError, match="is a file, not a folder"):
        require_output(existing / "x.png")
    with pytest.raises(ValueError, match="'.gif'"):
        require_picture_suffix(tmp_path / "x.gif")
    assert not (tmp_path / "new").exists()
