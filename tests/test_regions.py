"""Regions and presets: several styles in one picture, settings that go together."""

import inspect

import numpy as np
import pytest
import torch
from PIL import Image

from stylemamba import PromptFitConfig, StyleMambaPipeline
from stylemamba.pipeline.presets import PRESETS, preset
from stylemamba.pipeline.regions import Region, stylize_regions


@pytest.fixture
def image():
    return torch.rand(1, 3, 48, 60, generator=torch.Generator().manual_seed(0))


def columns(start, stop, width=60):
    mask = torch.zeros(48, width)
    mask[:, start:stop] = 1
    return mask


class TestRegions:
    def test_each_region_has_its_own_prompt_and_the_rest_is_untouched(self, pipe, image):
        regions = [Region(columns(0, 20), "stained glass"), Region(columns(40, 60), "neon city at night")]
        out = stylize_regions(pipe, image, regions, output_type="pt")
        for part, prompt in ((slice(0, 20), "stained glass"), (slice(40, 60), "neon city at night")):
            alone = pipe(image, prompt, output_type="pt").images
            assert torch.equal(out[..., part], alone[..., part])
        assert torch.equal(out[..., 20:40], image[..., 20:40])

    def test_a_region_may_have_a_fitted_style(self, pipe, image):
        style = pipe.fit_style(image, "stained glass", config=PromptFitConfig(epochs=2, train="fusion"))
        pipe.load_style(style, "glass")
        pipe.load_style(style, "other")
        styled = pipe(image, output_type="pt").images
        out = stylize_regions(
            pipe, image, [Region(columns(0, 30), style="glass"), Region(columns(30, 60), "neon city at night")],
            output_type="pt",
        )  # fmt: skip
        assert torch.equal(out[..., :30], styled[..., :30])
        assert pipe.list_styles() == {"glass": 0.0, "other": 1.0}  # what was in use before is again
        pipe.unload_styles()
        unfitted = pipe(image, "neon city at night", output_type="pt").images
        assert torch.equal(out[..., 30:], unfitted[..., 30:])

    def test_later_regions_lie_over_earlier_ones(self, pipe, image):
        regions = [Region(columns(0, 40), "stained glass"), Region(columns(20, 60), "neon city at night")]
        out = stylize_regions(pipe, image, regions, output_type="pt")
        over = pipe(image, "neon city at night", output_type="pt").images
        assert torch.equal(out[..., 20:], over[..., 20:])

    def test_settings_for_all_and_for_one(self, pipe, image):
        regions = [Region(columns(0, 30), "a", settings={"strength": 0.2}), Region(columns(30, 60), "a")]
        out = stylize_regions(pipe, image, regions, strength=0.9, output_type="pt")
        weak, strong = (pipe(image, "a", strength=s, output_type="pt").images for s in (0.2, 0.9))
        assert torch.equal(out[..., :30], weak[..., :30]) and torch.equal(out[..., 30:], strong[..., 30:])

    def test_masks_of_another_size_and_pictures_with_alpha(self, pipe):
        pixels = np.random.default_rng(0).integers(0, 256, (48, 60, 4), dtype=np.uint8)
        mask = Image.fromarray((columns(0, 10, 20).numpy()[::2] * 255).astype(np.uint8))
        (out,) = stylize_regions(pipe, Image.fromarray(pixels), [Region(mask, "stained glass")])
        assert out.mode == "RGBA" and out.size == (60, 48)
        assert np.array_equal(np.array(out)[:, 34:], pixels[:, 34:])
        assert np.array_equal(np.array(out)[..., 3], pixels[..., 3])

    def test_feathered_edges_never_leave_the_mask(self, pipe, image):
        out = stylize_regions(pipe, image, [Region(columns(10, 40), "a")], feather=8, output_type="pt")
        assert torch.equal(out[..., 40:], image[..., 40:]) and torch.equal(out[..., :10], image[..., :10])
        assert not torch.equal(out[..., 20:30], image[..., 20:30])

    def test_errors_are_one_sentence(self, pipe, image):
        for regions, message in (
            ([], "regions is empty, wanted at least one Region"),
            ([Region(torch.zeros(48, 60), "a")], r"the mask of region 1 is empty \(0 everywhere\)"),
            ([Region(torch.ones(48, 60), style="glass")], "no style named 'glass' is loaded"),
        ):
            with pytest.raises(ValueError, match=message):
                stylize_regions(pipe, image, regions)
        with pytest.raises(ValueError, match="got 2 pictures, wanted one"):
            stylize_regions(pipe, torch.cat([image, image]), [Region(torch.ones(48, 60), "a")])
        for wrong in ({}, {"prompt": "a", "style": "glass"}):
            with pytest.raises(ValueError, match="a region has prompt .* and style .*, wanted one of them"):
                Region(torch.ones(48, 60), **wrong)


class TestPresets:
    @pytest.mark.parametrize("name", PRESETS)
    def test_a_preset_is_a_bundle_of_arguments_that_exist(self, pipe, image, name):
        parameters = inspect.signature(StyleMambaPipeline.__call__).parameters
        assert PRESETS[name].purpose and preset(name).keys() <= parameters.keys()
        out = pipe(image, "stained glass", output_type="pt", **preset(name)).images
        assert out.shape == image.shape and not torch.equal(
            out, pipe(image, "stained glass", output_type="pt").images
        )

    def test_changing_a_preset_changes_no_other(self):
        preset("photo")["strength"] = 0.0
        assert preset("photo")["strength"] > 0

    def test_an_unknown_name(self):
        with pytest.raises(ValueError, match="preset is 'art', wanted one of photo, sketch, ui"):
            preset("art")
