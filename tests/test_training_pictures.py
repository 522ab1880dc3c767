"""Crops of training pictures, and how far two pictures lie apart."""

import random
import sys
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from pictures import Pictures, picture_distance  # noqa: E402


def test_crops_are_parts_of_the_pictures_or_their_mirror_images(tmp_path):
    values = torch.randint(256, (40, 50, 3), generator=torch.Generator().manual_seed(0)).byte()
    Image.fromarray(values.numpy()).save(tmp_path / "a.png")
    crops = Pictures([tmp_path / "a.png"], 40).crops(8, 16, random.Random(0)) * 255
    picture = values.permute(2, 0, 1).float()
    places = picture.unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    for crop in crops:
        found = [(places - one).abs().amax((1, 2, 3)).min() < 0.01 for one in (crop, crop.flip(-1))]
        assert any(found)


def test_picture_distance_is_pixels_edges_and_colour():
    a, b = torch.rand(2, 2, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    wanted = []
    for one, other in zip(a, b, strict=True):
        gap = one - other
        across, down = gap[:, :, 1:] - gap[:, :, :-1], gap[:, 1:] - gap[:, :-1]
        means = gap.unflatten(2, (3, 8)).unflatten(1, (2, 8)).mean((2, 4))
        edges = across.abs().mean() + down.abs().mean()
        wanted.append(gap.abs().mean() + 0.5 * edges + means.abs().mean())
    torch.testing.assert_close(picture_distance(a, b), torch.stack(wanted))
    assert picture_distance(a, a).abs().max() == 0
