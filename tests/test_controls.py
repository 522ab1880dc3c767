"""Colours, structure and stroke size."""

import pytest
import torch

from stylemamba.pipeline.controls import (
    REFERENCE_SIDE,
    add_fine_strokes,
    blur,
    enforce_structure,
    keep_colors,
    keep_palette,
    keep_shading,
    luminance,
    resize,
    stroke_size,
    stroke_sizes,
)


def random(*shape, seed=0, low=0.0, high=1.0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * (high - low) + low


CONTENT, STYLIZED = random(2, 3, 32, 40, low=0.3, high=0.7), random(2, 3, 32, 40, seed=1, low=0.4, high=0.6)


def chroma(rgb):
    return rgb - luminance(rgb)


def details(grey):
    """What is left of a picture without its coarse light and shade."""
    return grey - torch.nn.functional.avg_pool2d(grey, 3, stride=1, padding=1, count_include_pad=False)


class TestKeepColors:
    def test_light_of_the_result_colours_of_the_photo(self):
        kept = keep_colors(STYLIZED, CONTENT)
        torch.testing.assert_close(luminance(kept), luminance(STYLIZED))
        torch.testing.assert_close(chroma(kept), chroma(CONTENT))

    def test_a_picture_with_itself_is_itself(self):
        torch.testing.assert_close(keep_colors(CONTENT, CONTENT), CONTENT)

    def test_a_grey_photo_gives_a_grey_result(self):
        kept = keep_colors(STYLIZED, luminance(CONTENT).expand(-1, 3, -1, -1))
        torch.testing.assert_close(kept, luminance(STYLIZED).expand(-1, 3, -1, -1))

    def test_stays_in_range(self):
        kept = keep_colors(random(1, 3, 16, 16).round(), random(1, 3, 16, 16, seed=1).round())
        assert kept.min() >= 0 and kept.max() <= 1

    def test_luminance_of_white_is_one(self):
        assert luminance(torch.ones(1, 3, 2, 2)).sub(1).abs().max() < 1e-6


def mean_and_covariance(rgb):
    pixels = rgb.flatten(2).double()
    centred = pixels - pixels.mean(-1, keepdim=True)
    return pixels.mean(-1), centred @ centred.mT / pixels.shape[-1]


class TestKeepPalette:
    def test_mean_and_covariance_of_the_photo(self):
        painted = STYLIZED * torch.tensor([1.0, 0.5, 0.2]).view(3, 1, 1) + 0.1
        mixed = torch.einsum(
            "dc,bchw->bdhw", torch.tensor([[0.5, 0.3, 0], [0.1, 0.4, 0.2], [0, 0.3, 0.4]]), CONTENT
        )
        kept = keep_palette(painted, mixed)
        for found, wanted in zip(mean_and_covariance(kept), mean_and_covariance(mixed), strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=2e-4)

    def test_a_picture_with_itself_is_itself(self):
        torch.testing.assert_close(keep_palette(CONTENT, CONTENT), CONTENT, rtol=0, atol=1e-4)

    def test_a_grey_photo_gives_a_nearly_grey_result(self):
        kept = keep_palette(STYLIZED, luminance(CONTENT).expand(-1, 3, -1, -1))
        assert chroma(kept).abs().mean() < 0.1 * chroma(STYLIZED).abs().mean()

    def test_each_picture_of_a_batch_has_its_own(self):
        alone = [keep_palette(s[None], c[None]) for s, c in zip(STYLIZED, CONTENT, strict=True)]
        torch.testing.assert_close(keep_palette(STYLIZED, CONTENT), torch.cat(alone))


class TestKeepShading:
    LIGHT = torch.linspace(0.3, 0.9, 512).expand(1, 3, 96, 512)  # falls across the picture

    def test_0_is_the_result_itself(self):
        assert keep_shading(STYLIZED, CONTENT, 0.0) is STYLIZED

    def test_1_puts_the_broad_light_of_the_photo_back_and_keeps_the_pattern(self):
        pattern = 0.5 + 0.1 * (torch.arange(512) % 2 * 2.0 - 1).expand(1, 3, 96, 512)
        kept = keep_shading(pattern, self.LIGHT, 1.0)
        inside = (..., slice(40, -40))
        torch.testing.assert_close(
            blur(luminance(kept), 3.0)[inside], luminance(self.LIGHT)[inside], rtol=0, atol=0.02
        )
        stripes = kept[..., 1::2] > kept[..., 0::2]
        assert stripes.float().mean() > 0.95

    def test_hue_stays(self):
        red = torch.tensor([0.6, 0.2, 0.1]).view(1, 3, 1, 1).expand_as(self.LIGHT)
        kept = keep_shading(red, self.LIGHT, 0.7)
        ratio = kept[:, 1] / kept[:, 0]
        torch.testing.assert_close(ratio[kept[:, 0] < 1], torch.full_like(ratio, 1 / 3)[kept[:, 0] < 1])


class TestEnforceStructure:
    def test_0_is_the_result_itself(self):
        assert enforce_structure(STYLIZED, CONTENT, 0.0) is STYLIZED

    def test_1_puts_the_fine_light_of_the_photo_back(self):
        def distance(structure):
            restored = enforce_structure(STYLIZED, CONTENT, structure)
            return (details(luminance(restored)) - details(luminance(CONTENT))).norm().item()

        distances = [distance(s) for s in (0.0, 0.25, 0.5, 0.75, 1.0)]
        assert distances == sorted(distances, reverse=True)
        assert distances[-1] < 0.2 * distances[0]

    def test_leaves_colour_and_broad_light_to_the_style(self):
        flat = torch.zeros(1, 3, 64, 512) + torch.tensor([0.7, 0.4, 0.5]).view(3, 1, 1)
        ramp = torch.linspace(0.3, 0.6, 512).expand(1, 3, 64, 512)
        restored = enforce_structure(flat, ramp, 1.0)
        torch.testing.assert_close(chroma(restored), chroma(flat))
        inside = (..., slice(32, -32))  # a ramp bends where the picture ends
        torch.testing.assert_close(restored[inside], flat[inside], rtol=0, atol=1e-4)

    def test_a_part_of_a_picture_gets_what_it_has_in_the_whole(self):
        # Up to the size that styles are fitted at, strokes have so many pixels whatever the size.
        photo, painted = random(1, 3, REFERENCE_SIDE, 160), random(1, 3, REFERENCE_SIDE, 160, seed=1)
        whole = enforce_structure(painted, photo, 0.7)
        part = enforce_structure(painted[..., :160, :], photo[..., :160, :], 0.7)
        torch.testing.assert_close(part[..., :128, :], whole[..., :128, :])

    def test_a_picture_with_itself_is_itself(self):
        torch.testing.assert_close(enforce_structure(CONTENT, CONTENT, 1.0), CONTENT)

    def test_stays_in_range(self):
        restored = enforce_structure(random(1, 3, 16, 16).round(), random(1, 3, 16, 16, seed=1).round(), 1.0)
        assert restored.min() >= 0 and restored.max() <= 1


class TestStrokes:
    def test_twice_the_strokes_are_painted_at_half_the_size(self):
        assert stroke_size(100, 60, 2.0, 16) == (50, 30)
        assert stroke_size(100, 60, 0.5, 16) == (200, 120)
        assert stroke_size(101, 61, 1.0, 16) == (101, 61)
        for scale, sizes in ((2.0, [(50, 30), (100, 60)]), (1.0, [(100, 60)]), (0.5, [(200, 120)])):
            assert stroke_sizes((100, 60), scale, 16, (100, 60)) == sizes

    @pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
    def test_a_large_picture_is_painted_at_the_size_of_its_small_version(self, scale):
        small = stroke_size(384, REFERENCE_SIDE, scale, 16)
        assert stroke_size(4 * 384, 4 * REFERENCE_SIDE, scale, 16) == small
        assert max(small) == round(REFERENCE_SIDE / scale)

    def test_fine_strokes_change_nothing_that_the_small_painting_holds(self):
        broad = resize(random(1, 3, 8, 10, low=0.3, high=0.7), (32, 40))
        fine = (
            resize(random(1, 3, 32, 40, seed=2, low=0.2, high=0.4), (128, 160))
            + 0.05 * random(1, 3, 128, 160)
        ).clone()
        detail = luminance(fine) - resize(resize(luminance(fine), (32, 40)), (128, 160))
        both = add_fine_strokes(broad, fine)
        assert (resize(both, (32, 40)) - broad).abs().mean() < 0.01
        added = luminance(both) - resize(luminance(broad), (128, 160))
        torch.testing.assert_close(added, detail, rtol=0, atol=1e-4)

    def test_never_smaller_than_the_model_can_see(self):
        assert stroke_size(100, 20, 10.0, 16) == (16, 16)

    def test_resizing_to_the_same_size_changes_nothing(self):
        assert resize(CONTENT, (32, 40)) is CONTENT

    @pytest.mark.parametrize("size", [(16, 20), (64, 80), (17, 33)])
    def test_resizing_keeps_range_and_mean(self, size):
        resized = resize(CONTENT.round(), size)
        assert resized.shape == (2, 3, *size)
        assert resized.min() >= 0 and resized.max() <= 1
        assert abs(resized.mean() - CONTENT.round().mean()) < 0.03

    def test_shrinking_does_not_alias(self):
        assert resize(random(1, 3, 128, 128), (16, 16)).std() < 0.1  # noise averages out
