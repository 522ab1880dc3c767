"""Feathered masks and text that is left alone."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from stylemamba.pipeline.masks import feather_mask, find_text


def half(height=40, width=60):
    mask = torch.zeros(1, 1, height, width)
    mask[..., : width // 2] = 1
    return mask


def page(size=(320, 240)):
    """A page of text with a smooth photo on it; and where the text is."""
    image = Image.new("L", size, 245)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(13)
    for line in range(6):
        draw.text((12, 12 + 18 * line), "the quick brown fox jumps over", fill=20, font=font)
    pixels = np.array(image, dtype=np.float32) / 255
    rows, columns = np.mgrid[0:90, 0:280] / 90
    pixels[140:230, 20:300] = 0.5 + 0.3 * np.sin(3 * rows) * np.cos(2 * columns)
    return torch.from_numpy(pixels).expand(1, 3, -1, -1)


class TestFeather:
    def test_0_is_the_mask_itself(self):
        mask = half()
        assert feather_mask(mask, 0) is mask

    @pytest.mark.parametrize("radius", [2, 6, 12])
    def test_fades_inside_and_never_outside(self, radius):
        faded = feather_mask(half(), radius)
        assert not faded[..., 30:].any()
        assert (faded[..., : 30 - 2 * radius] > 0.95).all()
        row = faded[0, 0, 20, :30]
        assert (row.diff() <= 1e-6).all() and row[-1] < 0.5

    def test_the_border_of_the_picture_is_no_edge(self):
        assert (feather_mask(half(), 4)[..., 0] > 0.999).all()

    def test_a_soft_mask_stays_soft(self):
        assert torch.allclose(feather_mask(half() * 0.5, 3)[..., :10], torch.tensor(0.5), atol=1e-3)


class TestFindText:
    def test_text_is_found_and_smooth_pictures_are_not(self):
        found = find_text(page())[0, 0]
        ink = page()[0, 0] < 0.3
        ink[130:] = False
        assert found[ink].mean() > 0.99
        assert found[160:210, 40:280].mean() < 0.02

    def test_an_even_page_holds_none(self):
        assert not find_text(torch.full((1, 3, 64, 64), 0.9)).any()

    def test_noise_is_no_text(self):
        assert find_text(torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))).mean() < 0.01
