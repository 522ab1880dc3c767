"""Colour tables: fitting, applying, and the file that editors read."""

import pytest
import torch
import torch.nn.functional as F

from stylemamba.pipeline.lut import SIZE, apply_lut, fit_lut, identity_lut, write_cube


def picture(seed=0):
    small = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(small, size=(64, 80), mode="bicubic").clamp(0, 1)


def graded(rgb):
    """A tone of the kind that a colourist sets: contrast, a blue shadow, a warm light."""
    curve = rgb.pow(1.3)
    return (
        curve * torch.tensor([1.0, 0.9, 0.75]).view(3, 1, 1) + torch.tensor([0, 0.02, 0.1]).view(3, 1, 1)
    ).clamp(0, 1)


def read_cube(path):
    lines = path.read_text().splitlines()
    numbers = [[float(n) for n in line.split()] for line in lines if line and line[0] in "0123456789"]
    size = next(int(line.split()[1]) for line in lines if line.startswith("LUT_3D_SIZE"))
    return (
        torch.tensor(numbers).view(size, size, size, 3).permute(3, 0, 1, 2)
    )  # (3, b, g, r): red runs fastest


class TestTable:
    def test_the_identity_changes_nothing(self):
        torch.testing.assert_close(apply_lut(picture(), identity_lut()), picture(), rtol=0, atol=1e-5)

    def test_axes_are_red_green_blue(self):
        table = identity_lut(5)
        assert table[:, 0, 0, 4].tolist() == [1, 0, 0] and table[:, 4, 0, 0].tolist() == [0, 0, 1]
        swapped = table.flip(0)  # red becomes blue
        torch.testing.assert_close(apply_lut(picture(), swapped), picture().flip(1), rtol=0, atol=1e-5)

    def test_a_tone_is_found(self):
        table = fit_lut(picture(), graded(picture()))
        assert table.shape == (3, SIZE, SIZE, SIZE)
        assert (apply_lut(picture(), table) - graded(picture())).abs().mean() < 0.01

    def test_texture_is_not_taken(self):
        noise = torch.randn(1, 3, 64, 80, generator=torch.Generator().manual_seed(1)) * 0.2
        table = fit_lut(picture(), (graded(picture()) + noise).clamp(0, 1))
        toned = apply_lut(picture(), table)
        assert (toned - graded(picture())).abs().mean() < 0.04
        # as smooth as the photo was: neighbours in colour stay neighbours
        assert table.diff(dim=-1).abs().max() < 4 / SIZE

    def test_colours_that_the_picture_lacks_follow_the_trend(self):
        grey = picture().mean(1, keepdim=True).expand(-1, 3, -1, -1)
        table = fit_lut(grey, grey * 0.5)
        red = apply_lut(torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(-1, -1, 16, 16), table)
        assert red[0, 0].mean() > red[0, 1].mean() + 0.2  # still red


class TestCubeFile:
    def test_reproduces_the_tone(self, tmp_path):
        table = fit_lut(picture(), graded(picture()))
        write_cube(table, tmp_path / "tone.cube", 'a "title"\nof two lines')
        again = read_cube(tmp_path / "tone.cube")
        assert (apply_lut(picture(3), again) - apply_lut(picture(3), table)).abs().max() < 1 / 255
        assert (tmp_path / "tone.cube").read_text().splitlines()[0] == "TITLE \"a 'title' of two lines\""

    def test_never_replaces_a_file_unasked(self, tmp_path):
        path = tmp_path / "tone.cube"
        path.write_text("precious")
        with pytest.raises(
            FileExistsError, match="tone.cube exists already: give another name, or overwrite=True"
        ):
            write_cube(identity_lut(), path)
        assert path.read_text() == "precious"
        write_cube(identity_lut(), path, overwrite=True)
        assert read_cube(path).shape == (3, SIZE, SIZE, SIZE)

    def test_another_suffix_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="ends in '.png', wanted a name that ends in .cube"):
            write_cube(identity_lut(), tmp_path / "tone.png")
