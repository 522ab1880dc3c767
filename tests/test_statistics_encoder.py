"""The bundled image tower: a style is the statistics of feature maps."""

import pytest
import torch

from stylemamba.pipeline.perceptual import VGGFeatures
from stylemamba.pipeline.siglip_encoder import SiglipEncoder
from stylemamba.pipeline.statistics_encoder import StatisticsEncoder


@pytest.fixture
def tower():
    torch.manual_seed(0)
    return StatisticsEncoder(projection_size=6, channels=(2, 3, 4, 5, 6), hidden_size=8, image_size=32).eval()


def pictures(batch=2, side=32):
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_statistics_are_mean_and_log_deviation_of_every_channel(tower):
    pixels, wanted = pictures(1), []
    for maps in tower.features(pixels / 2 + 0.5, VGGFeatures.lpips_taps).values():
        flat = maps[0].flatten(1)
        variance = ((flat - flat.mean(1, keepdim=True)) ** 2).mean(1)
        wanted += [flat.mean(1), torch.log((variance + 1e-4).sqrt())]
    torch.testing.assert_close(tower.statistics(pixels)[0], torch.cat(wanted))


def test_head_sees_statistics_in_units_of_the_training_artworks(tower):
    pixels = pictures()
    statistics = tower.statistics(pixels)
    tower.center.copy_(statistics[0])
    tower.spread.fill_(0.5)
    wanted = tower.head(((statistics - tower.center) / 0.5).clamp(-5, 5))
    torch.testing.assert_close(tower(pixel_values=pixels).pooler_output, wanted)


def test_where_things_are_hardly_matters_what_they_are_made_of_does(tower):
    stripes = torch.zeros(1, 3, 32, 32)
    stripes[..., ::4] = 1
    mirrored, turned = stripes.flip(-1), stripes.transpose(-1, -2)

    def distance(other):
        return (tower.statistics(stripes) - tower.statistics(other)).abs().mean()

    assert distance(mirrored) < 0.3 * distance(turned.contiguous())


def test_it_stands_where_a_siglip_tower_stands(tower):
    encoder = SiglipEncoder(None, image_encoder=tower)
    assert encoder.image_size == 32
    images = torch.rand(2, 3, 50, 40, requires_grad=True)
    embeds = encoder.embed_images(images)
    assert embeds.shape == (2, 6)
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(2))
    embeds[:, 0].sum().backward()
    assert images.grad.abs().sum() > 0


def test_it_is_saved_and_loaded_with_the_statistics_of_its_training(tower, tmp_path):
    tower.center.normal_()
    tower.spread.uniform_(0.5, 2)
    tower.save_pretrained(tmp_path)
    loaded = StatisticsEncoder.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(pictures()).pooler_output, tower(pictures()).pooler_output)
