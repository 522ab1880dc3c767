"""`SaMamPipeline` and `MambaSTPipeline`: the same forms of pictures, the same promises and the same errors as
`StyleMambaPipeline`."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from stylemamba import MambaSTPipeline, SaMamPipeline, StyleMambaPipeline
from stylemamba.pipeline import image_guided_pipeline
from stylemamba.pipeline.controls import luminance
from stylemamba.pipeline.loading import load_pipeline


@pytest.fixture(params=["samam", "mamba_st"])
def pipe(request):
    pipe = request.getfixturevalue(request.param)()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def reader(samam):
    """A SaMam that reads prompts as well."""
    pipe = samam(reads_prompts=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(height=40, width=32, seed=0):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def pil(height=40, width=32, seed=0, mode="RGB"):
    array = (picture(height, width, seed)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    return Image.fromarray(array).convert(mode)


STYLE, OTHER = picture(64, 80, 7), picture(48, 48, 8)


class TestPictures:
    @pytest.mark.parametrize("size", [(16, 16), (17, 61), (40, 33)])
    def test_the_size_stays(self, pipe, size):
        (image,) = pipe(pil(*size), pil(64, 80, 7)).images
        assert image.size == size[::-1] and image.mode == "RGB"

    def test_every_form_of_the_picture_gives_the_same(self, pipe):
        photo = pil()
        array = np.array(photo)
        tensor = torch.from_numpy(array).permute(2, 0, 1)[None] / 255
        wanted = pipe(photo, STYLE, output_type="np").images
        for form in (array, array[None], tensor, [photo]):
            np.testing.assert_array_equal(pipe(form, STYLE, output_type="np").images, wanted)
        assert wanted.shape == (1, 40, 32, 3)

    def test_alpha_and_grey(self, pipe):
        photo = pil()
        photo.putalpha(pil(seed=3, mode="L"))
        (image,) = pipe(photo, STYLE).images
        assert image.mode == "RGBA" and image.getchannel("A").tobytes() == photo.getchannel("A").tobytes()
        assert pipe(pil(mode="L"), STYLE).images[0].mode == "RGB"

    def test_a_batch_equals_single_runs(self, pipe):
        photos = [picture(40, 32, 0), picture(40, 32, 1), picture(24, 40, 2)]
        batch = pipe(photos, STYLE, output_type="pt").images
        for photo, result in zip(photos, batch, strict=True):
            torch.testing.assert_close(pipe(photo, STYLE, output_type="pt").images[0], result)

    @pytest.mark.parametrize("stroke_scale", [0.25, 0.5, 1.0, 2.0])
    def test_no_pass_takes_more_pixels_than_it_may(self, pipe, stroke_scale, monkeypatch):
        """Whether by many pictures or by one that is painted larger than it is."""
        most, seen, encode = 2 * 40 * 32, [], pipe.encode_content
        monkeypatch.setattr(image_guided_pipeline, "MOST_PIXELS", most)
        monkeypatch.setattr(pipe, "encode_content", lambda rgb: seen.append(rgb.shape) or encode(rgb))
        photos = torch.cat([picture(seed=seed) for seed in range(5)])
        results = pipe(photos, STYLE, stroke_scale=stroke_scale, output_type="pt").images
        assert results.shape == photos.shape
        assert all(shape[0] * shape[2] * shape[3] <= 1.05 * most for shape in seen)  # sides are rounded
        torch.testing.assert_close(
            results[4:], pipe(photos[4:], STYLE, stroke_scale=stroke_scale, output_type="pt").images
        )

    def test_the_tuple_is_the_output(self, pipe):
        assert torch.equal(
            pipe(picture(), STYLE, output_type="pt", return_dict=False)[0],
            pipe(picture(), STYLE, output_type="pt").images,
        )


class TestStyles:
    def run(self, pipe, style, **options):
        return pipe(picture(), style, output_type="pt", **options).images

    def test_the_style_matters(self, pipe):
        assert not torch.allclose(self.run(pipe, STYLE), self.run(pipe, OTHER), atol=1e-3)

    def test_one_style_for_each_picture(self, pipe):
        photos = [picture(seed=0), picture(seed=1)]
        both = pipe(photos, [STYLE, OTHER], output_type="pt").images
        for photo, style, result in zip(photos, (STYLE, OTHER), both, strict=True):
            torch.testing.assert_close(pipe(photo, style, output_type="pt").images[0], result)

    def test_one_picture_in_several_styles(self, pipe):
        both = self.run(pipe, [STYLE, OTHER])
        torch.testing.assert_close(both, torch.cat([self.run(pipe, STYLE), self.run(pipe, OTHER)]))

    def test_weights(self, pipe):
        torch.testing.assert_close(self.run(pipe, [(STYLE, 2.0), (OTHER, 0.0)]), self.run(pipe, STYLE))
        torch.testing.assert_close(self.run(pipe, [(STYLE, 1), (STYLE, 3)]), self.run(pipe, STYLE))
        mixed = self.run(pipe, [(STYLE, 0.5), (OTHER, 0.5)])
        torch.testing.assert_close(mixed, self.run(pipe, [(OTHER, 3), (STYLE, 3)]))
        assert not torch.allclose(mixed, self.run(pipe, STYLE), atol=1e-3)
        rows = self.run(pipe, [[(STYLE, 1), (OTHER, 1)], STYLE])
        torch.testing.assert_close(rows, torch.cat([mixed, self.run(pipe, STYLE)]))

    def test_strength(self, pipe):
        with torch.no_grad():
            features = pipe.encode_content(picture())
            without = pipe.decode(features).clamp(0, 1)
        assert torch.equal(self.run(pipe, STYLE, strength=0.0), without)
        assert torch.equal(self.run(pipe, OTHER, strength=0.0), without)
        distances = [
            (self.run(pipe, STYLE, strength=strength) - without).abs().mean() for strength in (0.3, 1, 1.5)
        ]
        assert distances[0] < distances[1] < distances[2]

    def test_mask(self, pipe):
        mask = torch.zeros(40, 32)
        mask[:, 16:] = 1
        result = self.run(pipe, STYLE, mask_image=mask)
        assert torch.equal(result[..., :16], picture()[..., :16])
        assert torch.equal(result[..., 16:], self.run(pipe, STYLE)[..., 16:])

    def test_controls(self, pipe):
        whole = self.run(pipe, STYLE)
        kept = self.run(pipe, STYLE, preserve_color=True)
        chroma = (kept - luminance(kept)) - (picture() - luminance(picture()))
        inside = ((kept > 0) & (kept < 1)).all(1, keepdim=True).expand_as(kept)
        assert inside.any() and chroma[inside].abs().max() < 1e-5
        for option in ({"structure": 1.0}, {"stroke_scale": 2.0}, {"shading": 1.0}, {"tone_only": True}):
            assert not torch.allclose(self.run(pipe, STYLE, **option), whole, atol=1e-3)

    def test_steps_have_gradients(self, pipe):
        image = picture().requires_grad_()
        features = pipe.encode_content(image)
        pipe.decode(pipe.fuse(features, pipe.encode_style([(STYLE, 1.0)], (40, 32)))).sum().backward()
        assert image.grad.abs().sum() > 0


class TestShuffle:
    def test_one_seed_is_one_result_alone_and_in_a_batch(self, mamba_st):
        pipe = mamba_st()
        photos = [picture(seed=0), picture(seed=1)]

        def run(image, seed):
            generator = torch.Generator().manual_seed(seed)
            return pipe(image, STYLE, shuffles=2, generator=generator, output_type="pt").images

        batch = run(photos, 5)
        torch.testing.assert_close(torch.cat([run(photo, 5) for photo in photos]), batch)
        assert not torch.allclose(run(photos, 6), batch, atol=1e-4)

    def test_samam_has_nothing_to_shuffle(self, samam):
        with pytest.raises(ValueError, match="shuffles is 1, wanted 0: SaMamPipeline has no style tokens"):
            samam()(picture(), STYLE, shuffles=1)


class TestPrompts:
    """Words in place of a style image: SaMam with a text encoder and a head."""

    def run(self, pipe, prompt, **options):
        return pipe(picture(), prompt=prompt, output_type="pt", **options).images

    def test_a_prompt_is_the_style_that_the_head_makes_of_it(self, reader):
        with torch.no_grad():
            style = reader.encode_prompt(["stained glass"])
            wanted = reader.decode(reader.model.fuse(reader.encode_content(picture()), style)).clamp(0, 1)
        assert style.shape == (1, 8, 3, 3)
        torch.testing.assert_close(self.run(reader, "stained glass"), wanted)
        assert not torch.allclose(wanted, self.run(reader, "neon city at night"), atol=1e-3)

    def test_one_for_each_picture_and_mixtures(self, reader):
        glass, neon = self.run(reader, "stained glass"), self.run(reader, "neon city at night")
        both = self.run(reader, ["stained glass", "neon city at night"])
        torch.testing.assert_close(both, torch.cat([glass, neon]))
        mixed = self.run(reader, [("stained glass", 1), ("neon city at night", 3)])
        with torch.no_grad():
            styles = reader.encode_prompt(["stained glass", "neon city at night"])
            style = 0.25 * styles[:1] + 0.75 * styles[1:]
            wanted = reader.decode(reader.model.fuse(reader.encode_content(picture()), style)).clamp(0, 1)
        torch.testing.assert_close(mixed, wanted)

    def test_the_head_begins_at_the_middle_of_the_artworks(self, reader):
        head = reader.text_head
        with torch.no_grad():
            head.center.fill_(2.0)
            head.spread.fill_(3.0)
            head.head[-1].weight.zero_()
            head.head[-1].bias.fill_(-1.0)
            assert torch.equal(reader.encode_prompt(["mosaic"]), torch.full((1, 8, 3, 3), -1.0))

    def test_pictures_still_do(self, reader, samam):
        without = samam()
        without.set_progress_bar_config(disable=True)
        wanted = without(picture(), STYLE, output_type="pt").images
        torch.testing.assert_close(reader(picture(), STYLE, output_type="pt").images, wanted)

    def test_save_and_load(self, reader, tmp_path):
        reader.save_pretrained(tmp_path)
        loaded = load_pipeline(tmp_path)
        loaded.set_progress_bar_config(disable=True)
        torch.testing.assert_close(self.run(loaded, "mosaic"), self.run(reader, "mosaic"))
        index = json.loads((tmp_path / "model_index.json").read_text())
        assert index["text_head"] == ["stylemamba.pipeline.text_to_style", "TextToStyle"]

    def test_who_reads_no_prompts_says_so(self, pipe):
        with pytest.raises(ValueError, match="this (SaMam|MambaST)Pipeline reads none: give a style_image"):
            pipe(picture(), prompt="mosaic")

    def test_one_of_both_is_wanted(self, reader, pipe):
        with pytest.raises(ValueError, match="got both of style_image and prompt"):
            reader(picture(), STYLE, prompt="mosaic")
        with pytest.raises(ValueError, match="got neither .*, wanted a style_image or a prompt"):
            reader(picture())
        with pytest.raises(ValueError, match="got neither .*, wanted a style_image[.]"):
            pipe(picture())

    def test_weights(self, reader):
        with pytest.raises(ValueError, match=r"the weights of the prompts are \[0[.]5, -1[.]0\]"):
            self.run(reader, [("mosaic", 0.5), ("stained glass", -1)])


class TestWrongInputs:
    @pytest.mark.parametrize(
        "arguments, message",
        [
            ({"strength": 2}, "strength is 2, wanted a number from 0 to 1.5"),
            ({"structure": -1}, "structure is -1"),
            ({"stroke_scale": 0}, "stroke_scale is 0"),
            ({"feather": -1}, "feather is -1"),
            ({"preserve_color": "hue"}, "preserve_color is 'hue'"),
            ({"shuffles": -1}, "shuffles is -1, wanted a whole number"),
            ({"output_type": "latent"}, "output_type is 'latent', wanted one of pil, np, pt"),
            ({"generator": 3}, "generator is a int"),
            ({"style_image": []}, "style_image is an empty list"),
            ({"style_image": [(STYLE, 1), (OTHER, -1)]}, "wanted none below 0 and one above"),
            ({"style_image": [(STYLE, 0.0)]}, "wanted none below 0 and one above"),
            ({"style_image": [(torch.cat([STYLE, STYLE]), 1.0)]}, "a weight stands for 2 style images"),
            (
                {"style_image": [STYLE, OTHER], "image": [picture()] * 3},
                "got 2 styles for 3 pictures, wanted as many",
            ),
            ({"image": torch.rand(1, 3, 8, 8)}, "wanted at least 16 px"),
        ],
    )
    def test_the_sentence(self, pipe, arguments, message):
        with pytest.raises(ValueError, match=message):
            pipe(**{"image": picture(), "style_image": STYLE, **arguments})

    def test_broken_weights(self, pipe):
        with torch.no_grad():
            pipe.model.decoder[0].weight.fill_(float("nan"))
        with pytest.raises(FloatingPointError, match="NaN or infinite values"):
            pipe(picture(), STYLE)


class TestFolders:
    def test_save_and_load(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        loaded = load_pipeline(tmp_path)
        assert type(loaded) is type(pipe)
        loaded.set_progress_bar_config(disable=True)
        torch.testing.assert_close(
            loaded(picture(), STYLE, output_type="pt").images, pipe(picture(), STYLE, output_type="pt").images
        )
        assert loaded.config.style_size == pipe.config.style_size
        module = "samam" if isinstance(pipe, SaMamPipeline) else "mamba_st"
        index = json.loads((tmp_path / "model_index.json").read_text())
        assert index["model"] == [f"stylemamba.pipeline.{module}", type(pipe.model).__name__]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_the_bundled_models_paint_in_half_precision(self, dtype):
        for kind, name in ((SaMamPipeline, "samam-tiny"), (MambaSTPipeline, "mamba-st-tiny")):
            pipe, photo = kind.from_pretrained(name, dtype=dtype), torch.rand(1, 3, 64, 64)
            painted = pipe(photo, 1 - photo, output_type="pt").images
            assert torch.isfinite(painted).all() and (painted - photo).abs().mean() > 0.01

    def test_half_precision_files(self, pipe, tmp_path):
        wanted = pipe(picture(), STYLE, output_type="pt").images
        pipe.to(dtype=torch.float16).save_pretrained(tmp_path)
        loaded = type(pipe).from_pretrained(tmp_path, dtype=torch.float32)
        torch.testing.assert_close(
            loaded(picture(), STYLE, output_type="pt").images, wanted, atol=0.02, rtol=0
        )

    def test_a_folder_of_another_pipeline_says_which(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=f"holds a {type(pipe).__name__}, so load it with"):
            StyleMambaPipeline.from_pretrained(tmp_path)
