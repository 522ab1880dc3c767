"""Colours, structure and stroke size."""

import pytest
import torch

from stylemamba.pipeline.controls import enforce_structure, keep_colors, luminance, resize, stroke_size


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
        flat = torch.zeros(1, 3, 64, 64) + torch.tensor([0.7, 0.4, 0.5]).view(3, 1, 1)
        ramp = torch.linspace(0.3, 0.6, 64).expand(1, 3, 64, 64)
        restored = enforce_structure(flat, ramp, 1.0)
        torch.testing.assert_close(chroma(restored), chroma(flat))
        inside = (..., slice(4, -4))  # a ramp bends where the picture ends
        torch.testing.assert_close(restored[inside], flat[inside], rtol=0, atol=1e-4)

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
