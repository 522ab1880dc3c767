"""The tilted random crops of the patch loss."""

import pytest
import torch
from torch.autograd import gradcheck

from stylemamba.pipeline.crops import random_crops


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_smoke_and_cardinality(dtype):
    crops = random_crops(random(2, 3, 20, 24, dtype=dtype), 3, 12, 8)
    assert crops.shape == (6, 3, 8, 8)
    assert crops.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_exception():
    with pytest.raises(ValueError, match="at most 20"):
        random_crops(random(1, 3, 20, 24), 1, 21, 8)


def test_repeatable_by_seed():
    image = random(1, 3, 20, 24)
    one, same, other = (random_crops(image, 3, 12, 8, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_without_distortion_it_is_the_plain_crop():
    image = torch.arange(7 * 9.0).view(1, 1, 7, 9)
    for crop in random_crops(image, 5, 4, 4, distortion=0, generator=seeded()):
        window = image.unfold(2, 4, 1).unfold(3, 4, 1).reshape(-1, 4, 4)
        distance = (window - crop).abs().amax(dim=(1, 2)).min()
        assert distance < 1e-4


def test_a_tilted_crop_shows_all_of_its_crop_and_nothing_outside():
    crops = random_crops(torch.ones(1, 1, 32, 32), 8, 32, 32, generator=seeded())
    assert crops.min() >= 0 and crops.max() <= 1 + 1e-6
    covered = crops.mean(dim=(1, 2, 3))
    assert (covered > 0.25).all() and (covered < 1).all()
    assert (crops[..., 16, 16] > 0.99).all()


def test_gradcheck():
    image = random(1, 1, 5, 5).requires_grad_()
    assert gradcheck(lambda x: random_crops(x, 2, 4, 3, generator=seeded()), image)
