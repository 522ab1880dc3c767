"""`StyleMambaPipeline`: what diffusers expects of a pipeline (the rows of its own pipeline tests), and the contract."""

import copy
import inspect
import itertools
import logging

import accelerate
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from stylemamba import StyleMambaPipeline, mean_std_loss
from stylemamba.pipeline import pipeline_stylemamba
from stylemamba.pipeline.tiles import bytes_per_pixel

PROMPTS = ["stained glass", "an ink drawing on paper", "very long " * 100]


@pytest.fixture
def build(components):
    """`build(...)` gives a silent pipeline of tiny components; keyword arguments replace some."""

    def build(**overrides) -> StyleMambaPipeline:
        pipe = StyleMambaPipeline(**components(**overrides))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return build


def picture(height=48, width=40, seed=0, batch=1):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def pil(height=48, width=40, seed=0, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def run(pipe, image=None, prompt="stained glass", **kwargs):
    kwargs.setdefault("output_type", "pt")
    return pipe(picture() if image is None else image, prompt, **kwargs).images


def modules(pipe):
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def state(pipe):
    return {
        f"{name}.{key}": value.clone()
        for name, part in modules(pipe).items()
        for key, value in part.state_dict().items()
    }


def assert_close(actual, expected, atol=1e-4):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


class TestPipelineTesterMixin:
    """Every row of the table in diffusers' tests that fits a pipeline without denoising."""

    @pytest.mark.parametrize("safe_serialization", [True, False])
    def test_save_load_local(self, pipe, tmp_path, safe_serialization):
        pipe.save_pretrained(tmp_path, safe_serialization=safe_serialization)
        loaded = StyleMambaPipeline.from_pretrained(tmp_path)
        loaded.set_progress_bar_config(disable=True)
        before, after = state(pipe), state(loaded)
        assert before.keys() == after.keys()
        assert all(torch.equal(value, after[name]) for name, value in before.items())
        assert_close(run(loaded), run(pipe))

    @pytest.mark.parametrize(("output_type", "shape"), [("pt", (1, 3, 48, 40)), ("np", (1, 48, 40, 3))])
    def test_output(self, pipe, output_type, shape):
        assert run(pipe, output_type=output_type).shape == shape

    def test_pipeline_call_signature(self):
        parameters = inspect.signature(StyleMambaPipeline.__call__).parameters
        defaults = {name: p.default for name, p in parameters.items() if name != "self"}
        contract = {
            "image": None, "prompt": None, "style_image": None, "strength": 1.0, "structure": 0.0, "stroke_scale": 1.0,
            "preserve_color": False, "mask_image": None, "num_images_per_prompt": 1, "generator": None, "latents": None,
            "output_type": "pil", "return_dict": True, "callback_on_step_end": None,
            "callback_on_step_end_tensor_inputs": ["latents"],
        }  # fmt: skip
        assert {**defaults, **contract} == defaults
        assert list(defaults)[:2] == ["image", "prompt"]
        by_name_only = [name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
        assert by_name_only == list(defaults)[2:]

    def test_inference_batch_consistent(self, pipe):
        generators = [torch.Generator().manual_seed(i) for i in range(3)]
        out = run(pipe, [picture(seed=i) for i in range(3)], PROMPTS, generator=generators)
        assert out.shape == (3, 3, 48, 40)

    @pytest.mark.parametrize("prompts", [["stained glass"] * 3, PROMPTS])
    def test_inference_batch_single_identical(self, pipe, prompts):
        batch = run(pipe, picture(batch=3), prompts)
        for image, prompt, result in zip(picture(batch=3), prompts, batch, strict=True):
            assert_close(result[None], run(pipe, image, prompt))

    def test_dict_tuple_outputs_equivalent(self, pipe):
        named = pipe(picture(), "stained glass", output_type="pt")
        (images,) = pipe(picture(), "stained glass", output_type="pt", return_dict=False)
        assert torch.equal(named.images, images) and torch.equal(named[0], images)

    def test_components_function(self, components):
        parts = components()
        pipe = StyleMambaPipeline(**parts)
        assert pipe.components == parts

    @torch.no_grad()
    def test_save_load_optional_components(self, build, tmp_path):
        pipe = build(**dict.fromkeys(StyleMambaPipeline._optional_components))
        pipe.save_pretrained(tmp_path)
        loaded = StyleMambaPipeline.from_pretrained(tmp_path)
        assert all(loaded.components[name] is None for name in pipe._optional_components)
        assert_close(run(loaded), run(pipe))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_to_dtype(self, pipe, dtype):
        expected = run(pipe)
        pipe.to(dtype)
        assert {part.dtype for part in modules(pipe).values()} == {dtype}
        out = run(pipe)
        assert out.dtype == torch.float32
        assert_close(out, expected, atol=0.1 if dtype == torch.bfloat16 else 1e-4)

    def test_parameters_of_the_scan_stay_in_float32(self, pipe):
        pipe.to(torch.bfloat16)
        kept = [
            p.dtype for name, p in pipe.fusion.named_parameters() if name.endswith(("A_log", ".D", "dt_bias"))
        ]
        assert kept and set(kept) == {torch.float32}

    def test_sequential_cpu_offload_forward_pass(self, pipe):
        expected, by_picture = run(pipe), run(pipe, prompt=None, style_image=picture(seed=1))
        for name, part in modules(pipe).items():  # what enable_sequential_cpu_offload does, which wants a GPU
            if name not in pipe._exclude_from_cpu_offload:
                accelerate.cpu_offload(part, torch.device("cpu"), offload_buffers=bool(part._parameters))
        assert all(p.is_meta for p in pipe.fusion.parameters()) and all(
            p.is_meta for p in pipe.vae.parameters()
        )
        for _ in range(2):
            assert_close(run(pipe), expected)
            assert_close(run(pipe, prompt=None, style_image=picture(seed=1)), by_picture)

    def test_sequential_cpu_offload_of_the_bundled_model(self):
        pipe = StyleMambaPipeline.from_pretrained("tiny")
        pipe.set_progress_bar_config(disable=True)
        expected = run(pipe)
        for name, part in modules(pipe).items():
            if name not in pipe._exclude_from_cpu_offload:
                accelerate.cpu_offload(part, torch.device("cpu"), offload_buffers=bool(part._parameters))
        assert_close(run(pipe), expected)

    def test_model_cpu_offload_forward_pass(self, pipe):
        expected = run(pipe)
        pipe.enable_model_cpu_offload(device="cpu")
        for _ in range(2):
            assert_close(run(pipe), expected)
        used = set(pipe.model_cpu_offload_seq.split("->"))
        assert all(hasattr(part, "_hf_hook") for name, part in modules(pipe).items() if name in used)

    @pytest.mark.parametrize(("stroke_scale", "together"), [(1.0, 4), (0.5, 1), (2.0, 4)])
    def test_no_pass_takes_more_than_its_memory(self, pipe, stroke_scale, together, monkeypatch):
        """At half the stroke, four times the pixels of each picture go through the model."""
        images, encode, seen = picture(batch=6), pipe.encode_image, []
        wanted = run(pipe, images, PROMPTS[:1] * 6, stroke_scale=stroke_scale)
        fits = 4 * 48 * 40 * bytes_per_pixel(pipe.vae)
        monkeypatch.setattr(pipeline_stylemamba, "WHOLE_BYTES", fits)
        monkeypatch.setattr(pipe, "encode_image", lambda work: seen.append(work.shape) or encode(work))
        assert_close(run(pipe, images, PROMPTS[:1] * 6, stroke_scale=stroke_scale), wanted)
        assert max(shape[0] for shape in seen) == together

    @pytest.mark.parametrize(("batch", "copies"), [(1, 1), (1, 2), (2, 1), (2, 2)])
    def test_num_images_per_prompt(self, pipe, batch, copies):
        out = run(pipe, picture(batch=batch), PROMPTS[:batch], num_images_per_prompt=copies)
        assert len(out) == batch * copies
        assert_close(out, run(pipe, picture(batch=batch), PROMPTS[:batch]).repeat_interleave(copies, dim=0))

    def test_callback_inputs(self, pipe):
        seen = []

        def watch(pipeline, i, t, kwargs):
            seen.append(
                (pipeline is pipe, i, t, pipeline.num_timesteps, set(kwargs), kwargs["latents"].shape)
            )
            return kwargs

        unwatched = run(pipe, output_type="latent")
        watched = run(pipe, output_type="latent", callback_on_step_end=watch)
        assert torch.equal(watched, unwatched)
        assert seen == [(True, 0, 0, 1, set(pipe._callback_tensor_inputs), unwatched.shape)]

        def zero(pipeline, i, t, kwargs):
            return {"latents": torch.zeros_like(kwargs["latents"])}

        assert not run(pipe, output_type="latent", callback_on_step_end=zero).any()
        expected = pipe.decode(torch.zeros_like(unwatched), pipe.encode_prompt("stained glass")).clamp(0, 1)
        assert_close(run(pipe, callback_on_step_end=zero), expected)
        assert torch.equal(run(pipe, callback_on_step_end=lambda *_: None), run(pipe))

    def test_callback_interrupt(self, pipe):
        def stop(pipeline, i, t, kwargs):
            pipeline._interrupt = True
            return kwargs

        sizes = [picture(48, 40), picture(32, 32), picture(16, 16)]
        stopped = run(pipe, sizes, callback_on_step_end=stop)
        assert pipe.interrupt
        assert_close(stopped, run(pipe, sizes[0]))
        assert not pipe.interrupt and len(run(pipe, sizes)) == 3

    def test_serialization_with_variants(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path, variant="fp16")
        for name in modules(pipe):
            weights = list((tmp_path / name).glob("*.safetensors"))
            assert weights and all(".fp16." in path.name for path in weights)

    def test_loading_with_variants(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path, variant="fp16")
        loaded = state(StyleMambaPipeline.from_pretrained(tmp_path, variant="fp16"))
        assert all(torch.equal(value, loaded[name]) for name, value in state(pipe).items())

    def test_loading_with_incorrect_variants_raises_error(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="You are trying to load the model files of the `variant=fp16`"):
            StyleMambaPipeline.from_pretrained(tmp_path, variant="fp16")

    def test_encode_prompt_works_in_isolation(self, components, build):
        parts = components()
        texts = {name: part for name, part in parts.items() if "text" in name or "tokenizer" in name}
        alone = StyleMambaPipeline(**{**dict.fromkeys(parts), **texts})
        without = build(**dict.fromkeys(texts))
        with torch.no_grad():
            prompt_embeds = alone.encode_prompt("stained glass")
        assert_close(run(without, prompt=None, prompt_embeds=prompt_embeds), run(build()))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, {"vae": torch.bfloat16, "default": torch.float64}])
    def test_dtype_dict(self, pipe, tmp_path, dtype):
        pipe.save_pretrained(tmp_path)
        loaded = StyleMambaPipeline.from_pretrained(tmp_path, dtype=dtype)
        for name, part in modules(loaded).items():
            wanted = dtype.get(name, dtype["default"]) if isinstance(dtype, dict) else dtype
            assert part.dtype == wanted, name
        assert_close(run(loaded), run(pipe), atol=0.1)

    def test_pipeline_with_accelerator_device_map(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        assert_close(run(StyleMambaPipeline.from_pretrained(tmp_path, device_map="cpu")), run(pipe))


class TestVaeMixin:
    def test_vae_slicing(self, pipe):
        images, prompts = picture(batch=4), ["stained glass"] * 4
        whole = run(pipe, images, prompts)
        pipe.vae.enable_slicing()
        assert_close(run(pipe, images, prompts), whole, atol=1e-2)

    @pytest.mark.parametrize("size", [(96, 72), (73, 97), (65, 49)])
    def test_vae_tiling(self, build, taesd, size):
        # an autoencoder without normalisation: a tile of few random pixels has other statistics than the picture
        pipe = build(vae=taesd)
        pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size, pipe.vae.tile_overlap_factor = (
            64,
            8,
            0.5,
        )
        whole = run(pipe, picture(*size))
        pipe.vae.enable_tiling()
        tiled = run(pipe, picture(*size))
        assert tiled.shape == whole.shape and not torch.equal(tiled, whole)
        assert_close(tiled, whole, atol=0.5)

    def test_tiling_is_the_one_of_the_autoencoder(self, pipe):
        pipe.vae.enable_tiling()
        image = picture(64, 72)
        with torch.no_grad():
            tiled = pipe.vae.decode(pipe.vae.encode(image * 2 - 1).latent_dist.mode()).sample / 2 + 0.5
        assert_close(run(pipe, image, strength=0), tiled.clamp(0, 1), atol=1e-5)


class TestPipelineLatentMixin:
    def test_pt_np_pil_outputs_equivalent(self, pipe):
        pt, array, (image,) = (run(pipe, output_type=kind) for kind in ("pt", "np", "pil"))
        assert_close(pt.permute(0, 2, 3, 1), torch.tensor(array))
        assert np.array_equal(np.array(image), (array[0] * 255).round().astype(np.uint8))

    def test_pt_np_pil_inputs_equivalent(self, pipe):
        image = pil()
        array = np.array(image)
        expected = run(pipe, image)
        tensor = torch.tensor(array).permute(2, 0, 1)
        for same in (array, array / 255, tensor, tensor[None] / 255, [image], [array[None]]):
            assert_close(run(pipe, same), expected)

    def test_latents_input(self, pipe):
        with torch.no_grad():
            latents = pipe.encode_image(picture())
        expected = run(pipe)
        assert_close(run(pipe, picture(), latents=latents), expected)
        assert_close(pipe(None, "stained glass", latents=latents, output_type="pt").images, expected)

    @pytest.mark.parametrize("kind", [AutoencoderKL, AsymmetricAutoencoderKL, AutoencoderTiny])
    @pytest.mark.parametrize("levels", [2, 3, 4])
    def test_multi_vae(self, build, kind, levels):
        wide = (8,) * levels
        config = {
            AutoencoderKL: {
                "block_out_channels": wide, "down_block_types": ("DownEncoderBlock2D",) * levels,
                "up_block_types": ("UpDecoderBlock2D",) * levels, "norm_num_groups": 2,
            },
            AsymmetricAutoencoderKL: {
                "down_block_out_channels": wide, "down_block_types": ("DownEncoderBlock2D",) * levels,
                "up_block_out_channels": wide, "up_block_types": ("UpDecoderBlock2D",) * levels, "norm_num_groups": 2,
            },
            AutoencoderTiny: {
                "encoder_block_out_channels": wide, "decoder_block_out_channels": wide,
                "num_encoder_blocks": (1,) * levels, "num_decoder_blocks": (1,) * levels,
            },
        }[kind]  # fmt: skip
        pipe = build(vae=lambda: kind(**config).eval())
        assert pipe.vae_scale_factor == 2 ** (levels - 1)
        assert run(pipe, picture(49, 41)).shape == (1, 3, 49, 41)


@pytest.fixture
def stable_diffusion(components) -> StableDiffusionPipeline:
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), norm_num_groups=2, layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, attention_head_dim=2,
    )  # fmt: skip
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=32, intermediate_size=37, num_hidden_layers=1, num_attention_heads=4, vocab_size=200,
            max_position_embeddings=16, pad_token_id=0, eos_token_id=1, bos_token_id=2,
        )
    )  # fmt: skip
    parts = components()
    sd = StableDiffusionPipeline(
        parts["vae"],
        text_encoder,
        parts["tokenizer"],
        unet,
        DDIMScheduler(steps_offset=1, clip_sample=False),
        None,
        None,
        requires_safety_checker=False,
    )
    sd.set_progress_bar_config(disable=True)
    return sd


class TestFromPipeMixin:
    """With a real, tiny Stable Diffusion pipeline."""

    @pytest.fixture
    def towers(self, components):
        return {name: components()[name] for name in ("text_encoder", "tokenizer", "image_encoder")}

    def paint(self, sd):
        embeds = torch.rand(1, 16, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float32).to(
            sd.unet.dtype
        )
        return sd(
            prompt_embeds=embeds, guidance_scale=1.0, num_inference_steps=2, height=32, width=32, output_type="np",
            generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip

    def test_from_pipe_consistent_forward_pass(self, stable_diffusion, towers, build):
        before, config = self.paint(stable_diffusion), dict(stable_diffusion.config)
        pipe = StyleMambaPipeline.from_pipe(stable_diffusion, **towers, preset="tiny")
        pipe.set_progress_bar_config(disable=True)
        assert pipe.vae is stable_diffusion.vae and pipe.text_encoder is towers["text_encoder"]
        assert_close(run(pipe), run(build(fusion=pipe.fusion)))
        assert (
            np.array_equal(self.paint(stable_diffusion), before) and dict(stable_diffusion.config) == config
        )

    def test_from_pipe_consistent_config(self, stable_diffusion, towers):
        pipe = StyleMambaPipeline.from_pipe(stable_diffusion, **towers, preset="tiny")
        own = {k: v for k, v in stable_diffusion.components.items() if k != "vae"}
        back = StableDiffusionPipeline.from_pipe(pipe, **own)
        for sd, config in ((back, back.config), (stable_diffusion, stable_diffusion.config)):
            assert config["requires_safety_checker"] is False and sd.vae is pipe.vae
        public = [{k: v for k, v in p.config.items() if k[0] != "_"} for p in (back, stable_diffusion)]
        assert public[0] == public[1]
        assert np.array_equal(self.paint(back), self.paint(stable_diffusion))

    def test_from_pipe_consistent_forward_pass_cpu_offload(self, stable_diffusion, towers):
        expected = run(StyleMambaPipeline.from_pipe(stable_diffusion, **towers, preset="tiny"))
        pipe = StyleMambaPipeline.from_pipe(stable_diffusion, **towers, preset="tiny")
        pipe.enable_model_cpu_offload(device="cpu")
        assert_close(run(pipe), expected)

    @pytest.mark.parametrize(
        ("unet", "vae"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)]
    )
    def test_the_precision_of_no_shared_component_is_changed(self, stable_diffusion, towers, unet, vae):
        stable_diffusion.unet.to(unet)
        stable_diffusion.vae.to(vae)
        pipe = StyleMambaPipeline.from_pipe(stable_diffusion, **towers, preset="tiny")
        assert stable_diffusion.vae.dtype == vae and stable_diffusion.unet.dtype == unet
        assert pipe.fusion.dtype == vae and torch.isfinite(run(pipe)).all()

    def test_between_two_of_ours_everything_is_shared(self, components):
        pipe = StyleMambaPipeline(**components(), logit_scale=10.0, logit_bias=-3.0)
        again = StyleMambaPipeline.from_pipe(pipe)
        assert again.components.keys() == pipe.components.keys()
        assert all(again.components[name] is part for name, part in pipe.components.items())
        assert (again.config.logit_scale, again.config.logit_bias) == (10.0, -3.0)

    def test_the_bundled_model_is_shared_with_the_decoder_that_paints(self):
        pipe = StyleMambaPipeline.from_pretrained("tiny")
        again = StyleMambaPipeline.from_pipe(pipe)
        assert all(again.components[name] is part for name, part in pipe.components.items())
        assert again.style_decoder is not None

    def test_error_names_what_is_missing(self, stable_diffusion):
        with pytest.raises(ValueError, match="text_encoder is None, wanted a SigLIP text tower"):
            StyleMambaPipeline.from_pipe(stable_diffusion)
        stable_diffusion.vae = None
        with pytest.raises(ValueError, match="StableDiffusionPipeline has no vae to share"):
            StyleMambaPipeline.from_pipe(stable_diffusion)


class TestSizes:
    def test_output_size_is_input_size(self, pipe):
        sides = range(16, 41)
        for height, width in {
            *itertools.product(sides, (16, 17, 33)),
            *itertools.product((16, 17, 33), sides),
        }:
            assert run(pipe, picture(height, width)).shape == (1, 3, height, width)

    def test_mixed_sizes_come_back_in_order_and_as_if_alone(self, pipe):
        images = [picture(48, 40), picture(33, 17, seed=1), picture(48, 40, seed=2), picture(16, 16, seed=3)]
        prompts = ["stained glass", "an ink drawing on paper", "neon city at night", "very long"]
        results = run(pipe, images, prompts)
        for image, prompt, result in zip(images, prompts, results, strict=True):
            assert_close(result[None], run(pipe, image, prompt))

    def test_one_forward_pass_for_each_size(self, pipe):
        seen = []
        run(
            pipe, [picture(48, 40), picture(32, 32), picture(48, 40)],
            callback_on_step_end=lambda p, i, t, kwargs: seen.append((i, p.num_timesteps, len(kwargs["latents"]))),
        )  # fmt: skip
        assert seen == [(0, 2, 2), (1, 2, 1)]


class TestStrength:
    @torch.no_grad()
    def reconstruction(self, pipe, image, height=48, width=40):
        decoded = pipe.vae.decode(pipe.vae.encode(image * 2 - 1).latent_dist.mode()).sample
        return (decoded / 2 + 0.5).clamp(0, 1)[..., :height, :width]

    def test_0_is_the_reconstruction_of_the_autoencoder(self, build):
        pipe = build()
        pipe.vae.register_to_config(scaling_factor=1.0)  # so that dividing by it changes no bit
        assert torch.equal(run(pipe, strength=0), self.reconstruction(pipe, picture()))
        pipe.vae.register_to_config(scaling_factor=0.18215)
        assert_close(run(pipe, strength=0), self.reconstruction(pipe, picture()), atol=1e-5)

    def test_0_is_the_reconstruction_for_sizes_that_are_no_multiple(self, pipe):
        image = picture(45, 33)
        padded = F.pad(image, (0, 7, 0, 3), mode="reflect")
        assert_close(run(pipe, image, strength=0), self.reconstruction(pipe, padded, 45, 33), atol=1e-5)

    def test_moves_away_from_it_monotonically(self, pipe):
        steps = [run(pipe, strength=s / 4, output_type="latent") for s in range(7)]
        distances = [(z - steps[0]).norm().item() for z in steps]
        assert distances[0] == 0 and distances == sorted(distances) and len(set(distances)) == 7
        assert_close(steps[2], (steps[0] + steps[4]) / 2)

    def test_1_is_what_the_fusion_gives(self, pipe):
        with torch.no_grad():
            z, embeds = pipe.encode_image(picture()), pipe.encode_prompt("stained glass")
            assert torch.equal(run(pipe, output_type="latent"), pipe.fusion(z, embeds))

    def test_a_fresh_fusion_reconstructs_whatever_the_prompt(self, build, components):
        fresh = type(components()["fusion"]).from_preset("tiny", cond_dim=32)
        pipe = build(fusion=fresh)
        assert torch.equal(run(pipe), run(pipe, prompt="an ink drawing on paper", strength=0))


class TestAlphaAndMask:
    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_alpha_is_put_back(self, pipe, mode):
        image = pil(mode=mode)
        (out,) = run(pipe, image, output_type="pil")
        assert out.mode == "RGBA" and out.size == image.size
        assert np.array_equal(np.array(out)[..., 3], np.array(image)[..., -1])
        assert np.array_equal(
            np.array(out)[..., :3], np.array(run(pipe, image.convert(mode[:-1]), output_type="pil")[0])
        )

    def test_pictures_with_and_without_alpha_in_one_call(self, pipe):
        out = run(pipe, [pil(mode="RGBA"), pil(), pil(mode="L")], output_type="pil")
        assert [image.mode for image in out] == ["RGBA", "RGB", "RGB"]

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
    def test_unmasked_pixels_of_8_bit_pictures_stay_bit_identical(self, pipe, mode):
        image, keep = pil(mode=mode), np.zeros((48, 40), bool)
        keep[10:30, 5:20] = True
        (out,) = run(pipe, image, mask_image=~keep, output_type="pil")
        before, after = np.array(image.convert(out.mode)), np.array(out)
        assert np.array_equal(after[keep], before[keep])
        styled = np.array(run(pipe, image, output_type="pil")[0])
        assert np.array_equal(after[~keep], styled[~keep]) and not np.array_equal(styled[keep], before[keep])

    @pytest.mark.parametrize("output_type", ["pt", "np"])
    def test_unmasked_pixels_of_floats_stay_bit_identical(self, pipe, output_type):
        mask = torch.zeros(48, 40)
        mask[:24] = 1
        out = torch.as_tensor(run(pipe, mask_image=mask, output_type=output_type))
        out = out if output_type == "pt" else out.permute(0, 3, 1, 2)
        assert torch.equal(out[..., 24:, :], picture()[..., 24:, :])
        assert_close(out[..., :24, :], run(pipe)[..., :24, :])

    @pytest.mark.parametrize("shape", [(48, 40), (1, 48, 40), (1, 1, 48, 40), (48, 40, 1), (1, 48, 40, 1)])
    def test_an_array_of_any_shape_that_is_asked_for_is_a_mask(self, pipe, shape):
        mask = np.zeros((48, 40), np.float32)
        mask[:24] = 1
        assert torch.equal(
            run(pipe, mask_image=mask.reshape(shape)), run(pipe, mask_image=torch.from_numpy(mask))
        )

    def test_a_soft_mask_mixes(self, pipe):
        out = run(pipe, mask_image=torch.full((48, 40), 0.25))
        assert_close(out, 0.25 * run(pipe) + 0.75 * picture())

    def test_masks_of_another_size_and_several_pictures(self, pipe):
        images, top = [picture(48, 40), picture(32, 32)], torch.zeros(8, 8)
        top[:4] = 1
        for out, image in zip(run(pipe, images, mask_image=top), images, strict=True):
            assert torch.equal(out[:, -8:], image[0, :, -8:]) and not torch.equal(out[:, :8], image[0, :, :8])
        nothing, all_ = torch.zeros(48, 40), torch.ones(48, 40)
        out = run(pipe, picture(batch=2), mask_image=[nothing, all_])
        assert torch.equal(out[0], picture(batch=2)[0]) and not torch.equal(out[1], picture(batch=2)[1])

    def test_one_mask_for_each_picture_serves_all_its_copies(self, pipe):
        masks = [torch.zeros(48, 40), torch.ones(48, 40)]
        out = run(pipe, picture(batch=2), mask_image=masks, num_images_per_prompt=2)
        kept = [
            torch.equal(result, image)
            for result, image in zip(out, picture(batch=2)[[0, 0, 1, 1]], strict=True)
        ]
        assert kept == [True, True, False, False]

    def test_several_prompts_for_one_picture_may_have_a_mask_each(self, pipe):
        out = run(pipe, prompt=PROMPTS[:2], mask_image=[torch.zeros(48, 40), torch.ones(48, 40)])
        assert torch.equal(out[:1], picture()) and not torch.equal(out[1:], picture())


class TestPrompts:
    def test_one_picture_with_many_prompts_gives_one_result_each(self, pipe):
        out = run(pipe, prompt=PROMPTS)
        assert len(out) == 3
        for prompt, result in zip(PROMPTS, out, strict=True):
            assert_close(result[None], run(pipe, prompt=prompt))
        assert not torch.allclose(out[0], out[1], atol=1e-4)

    def test_one_prompt_serves_many_pictures(self, pipe):
        assert_close(run(pipe, picture(batch=2)), run(pipe, picture(batch=2), ["stained glass"] * 2))

    def test_a_very_long_prompt_is_cut_with_a_warning(self, pipe, caplog):
        with caplog.at_level(logging.WARNING, "stylemamba"):
            run(pipe, prompt=PROMPTS[2])
        assert "is cut to 16" in caplog.text

    def test_weights_mix_the_directions(self, pipe):
        with torch.no_grad():
            a, b = pipe.encode_prompt(["stained glass", "an ink drawing on paper"])
            mixed = pipe.encode_prompt([("stained glass", 0.7), ("an ink drawing on paper", 0.3)])
            assert mixed.shape == (1, 32)
            assert_close(mixed[0], F.normalize(0.7 * a + 0.3 * b, dim=-1), atol=1e-6)
            alone = pipe.encode_prompt([("stained glass", 2.0), ("an ink drawing on paper", 0.0)])
            assert torch.equal(alone[0], a)

    def test_a_list_may_hold_mixtures_and_plain_prompts(self, pipe):
        mixture = [("stained glass", 0.5), ("neon city at night", 0.5)]
        with torch.no_grad():
            embeds = pipe.encode_prompt([mixture, "very long", [("neon city at night", 1)]])
            assert_close(embeds[0], pipe.encode_prompt(mixture)[0], atol=1e-6)
            assert_close(embeds[1:], pipe.encode_prompt(["very long", "neon city at night"]), atol=1e-6)

    def test_each_prompt_reads_the_same_alone_and_in_a_list(self, pipe):
        with torch.no_grad():
            together = pipe.encode_prompt(PROMPTS, num_images_per_prompt=2)
            alone = [pipe.encode_prompt(prompt) for prompt in PROMPTS for _ in range(2)]
            assert_close(together, torch.cat(alone), atol=1e-6)

    def test_prompt_embeds_stand_for_the_prompt(self, pipe):
        with torch.no_grad():
            embeds = pipe.encode_prompt(PROMPTS[:2])
        assert torch.equal(run(pipe, prompt=None, prompt_embeds=embeds), run(pipe, prompt=PROMPTS[:2]))
        assert_close(run(pipe, prompt=None, prompt_embeds=embeds[0]), run(pipe, prompt=PROMPTS[0]))

    def test_a_style_image_stands_for_the_prompt_or_is_mixed_half_and_half(self, pipe):
        painting = picture(64, 50, seed=5)
        with torch.no_grad():
            seen, read = pipe.encoder.embed_images(painting), pipe.encode_prompt("stained glass")
        assert_close(run(pipe, prompt=None, style_image=painting), run(pipe, prompt=None, prompt_embeds=seen))
        half = F.normalize(seen + read, dim=-1)
        assert_close(run(pipe, style_image=painting), run(pipe, prompt=None, prompt_embeds=half))

    def test_several_style_images_go_with_one_prompt_or_one_each(self, pipe):
        paintings = [picture(64, 50, seed=5), picture(32, 32, seed=6)]
        each = torch.cat([run(pipe, style_image=painting) for painting in paintings])
        assert_close(run(pipe, style_image=paintings), each)
        assert_close(run(pipe, prompt=["stained glass"] * 2, style_image=paintings), each)


class TestControls:
    def test_preserve_color_takes_only_the_luminance(self, pipe):
        luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
        image = picture() * 0.2 + 0.4
        plain, kept = run(pipe, image), run(pipe, image, preserve_color=True)
        inside = ((kept > 0) & (kept < 1)).all(1, keepdim=True)
        assert inside.float().mean() > 0.5
        light = [(x * luma).sum(1, keepdim=True) for x in (image, plain, kept)]
        assert_close(light[2][inside], light[1][inside], atol=1e-5)
        assert_close(
            (kept - light[2])[inside.expand_as(kept)], (image - light[0])[inside.expand_as(kept)], atol=1e-5
        )

    def test_above_one_a_decoder_that_paints_is_exaggerated(self):
        pipe = StyleMambaPipeline.from_pretrained("tiny", dtype=torch.float32)
        embeds = pipe.encode_prompt("ukiyo-e woodblock print")
        with torch.no_grad():
            fused = pipe.fuse(pipe.encode_image(picture()), embeds)
            plain, painted, more = (pipe.decode(fused, embeds, s) for s in (0.0, 1.0, 1.4))
        assert (painted - plain).abs().mean() > 0.02
        assert_close(more - plain, 1.4 * (painted - plain), atol=1e-5)

    @pytest.mark.parametrize("strength", [0.3, 0.5, 1.3])
    def test_a_decoder_that_paints_mixes_the_photo_with_the_whole_style(self, strength):
        """Latents halfway between both are those of a third style."""
        pipe = StyleMambaPipeline.from_pretrained("tiny", dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        embeds = pipe.encode_prompt("ukiyo-e woodblock print")
        with torch.no_grad():
            z = pipe.encode_image(picture())
            plain, painted = pipe.decode(z, embeds, 0.0), pipe.decode(pipe.fuse(z, embeds), embeds)
        wanted = ((1 - strength) * plain + strength * painted).clamp(0, 1)[..., :48, :40]
        out = run(pipe, prompt=None, prompt_embeds=embeds, strength=strength)
        assert_close(out, wanted, atol=1e-5)

    def test_structure_moves_towards_the_photo(self, pipe):
        image = picture() * 0.4 + 0.3

        def edges(x):
            grey = x.mean(1, keepdim=True)
            return grey - F.avg_pool2d(grey, 3, 1, 1, count_include_pad=False)

        distances = [
            (edges(run(pipe, image, structure=s)) - edges(image)).norm().item() for s in (0, 0.05, 0.1)
        ]
        assert distances[0] > distances[1] > distances[2]
        assert torch.equal(run(pipe, image, structure=0.0), run(pipe, image))

    @pytest.mark.parametrize("scale", [0.5, 2.0, 3.7])
    def test_stroke_scale_paints_at_another_size(self, pipe, scale):
        seen = []
        out = run(
            pipe, picture(48, 64), stroke_scale=scale,
            callback_on_step_end=lambda p, i, t, kwargs: seen.append(tuple(kwargs["latents"].shape[-2:])),
        )  # fmt: skip
        painted = [max(16, round(side / scale)) for side in (48, 64)]
        # enlarged strokes leave room for fine ones, painted at full size
        sizes = [painted, (48, 64)] if scale > 1 else [painted]
        assert out.shape == (1, 3, 48, 64)
        assert seen == [tuple(-(-side // 8) for side in size) for size in sizes]
        assert not torch.equal(out, run(pipe, picture(48, 64)))

    def test_strokes_are_as_large_at_every_resolution(self):
        """A large photo and its small version: reduced to one size their results have the same statistics of features, as
        painting the large one at its own size does not give them."""
        pipe = StyleMambaPipeline.from_pretrained("tiny")
        pipe.set_progress_bar_config(disable=True)
        large = F.interpolate(picture(60, 60), size=(1024, 1024), mode="bicubic").clamp(0, 1)
        small = F.interpolate(large, scale_factor=0.5, mode="bicubic", antialias=True).clamp(0, 1)
        embeds = pipe.encode_prompt("mosaic of small tiles")

        @torch.no_grad()
        def difference(rgb):
            rgb = F.interpolate(rgb, size=(512, 512), mode="bicubic", antialias=True).clamp(0, 1)
            maps = [
                list(pipe.perceptual(x, ["relu1_2", "relu2_2", "relu3_3"]).values()) for x in (rgb, painted)
            ]
            return mean_std_loss(*maps).item()

        painted = run(pipe, small, prompt=None, prompt_embeds=embeds)
        with torch.no_grad():
            native = pipe.decode(pipe.fuse(pipe.encode_image(large), embeds), embeds).clamp(0, 1)
        assert difference(run(pipe, large, prompt=None, prompt_embeds=embeds)) < 0.1 * difference(native)

    @pytest.mark.parametrize(
        "settings",
        [{"shading": 0.7}, {"preserve_color": "palette"}, {"tone_only": True}],
        ids=lambda s: next(iter(s)),
    )
    def test_each_control_changes_the_picture_and_only_on_demand(self, pipe, settings):
        image = F.interpolate(picture(6, 5), size=(48, 40), mode="bicubic").clamp(0, 1)
        out = run(pipe, image, **settings)
        assert out.shape == image.shape and not torch.equal(out, run(pipe, image))
        both = run(pipe, torch.cat([image, image.flip(-1)]), **settings)
        assert_close(both[:1], out)

    def test_true_and_luminance_are_one(self, pipe):
        assert torch.equal(run(pipe, preserve_color=True), run(pipe, preserve_color="luminance"))

    def test_a_feathered_mask_leaves_the_outside_alone(self, pipe):
        mask = torch.zeros(48, 40)
        mask[:, :20] = 1
        out, sharp = run(pipe, mask_image=mask, feather=6.0), run(pipe, mask_image=mask)
        assert torch.equal(out[..., 20:], picture()[..., 20:])
        assert torch.equal(out[..., :8], sharp[..., :8]) or (out - sharp)[..., :8].abs().max() < 0.02
        assert (out - picture())[..., 18:20].abs().mean() < 0.5 * (sharp - picture())[..., 18:20].abs().mean()

    def test_text_stays_legible(self, pipe):
        page = torch.full((1, 3, 96, 96), 0.7)
        page[..., 20:40, 10:80] -= (torch.arange(70) // 2 % 3 == 0).float() * 0.5  # strokes of 2 px
        out, plain = run(pipe, page, protect_text=True), run(pipe, page)

        def error(rgb):
            """Of the edges between strokes; their ground is the style's."""
            grey, wanted = (
                (x * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1) for x in (rgb, page)
            )
            return (grey - wanted).diff(dim=-1)[..., 24:36, 14:76].abs().mean()

        assert error(out) < 0.2 * error(plain)
        assert torch.equal(out[..., 70:, :], plain[..., 70:, :])

    def test_an_empty_mask_is_said(self, pipe, caplog):
        assert torch.equal(run(pipe, mask_image=torch.zeros(48, 40)), picture())
        assert "mask_image is empty (0 everywhere): nothing is stylized." in caplog.text

    def test_slerp_and_linear_mixes_differ(self, pipe):
        mixture = [("stained glass", 0.8), ("neon city at night", 0.2)]
        assert not torch.equal(run(pipe, prompt=mixture, mix="slerp"), run(pipe, prompt=mixture))

    def test_everything_at_once(self, pipe):
        images = [pil(48, 40, mode="RGBA"), pil(33, 17, seed=1, mode="L")]
        out = pipe(
            images, [[("stained glass", 0.5), ("very long", 0.5)], "neon city at night"], style_image=pil(20, 20),
            strength=0.8, structure=0.3, stroke_scale=1.5, preserve_color=True, mask_image=pil(10, 10, mode="L"),
            num_images_per_prompt=2, generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip
        assert [image.size for image in out] == [(40, 48), (40, 48), (17, 33), (17, 33)]


class TestNoSideEffects:
    def test_same_input_same_output(self, pipe):
        first = run(pipe, generator=torch.Generator().manual_seed(0))
        torch.manual_seed(99)
        assert torch.equal(run(pipe, generator=torch.Generator().manual_seed(0)), first)

    def test_no_random_numbers_of_the_caller_are_used(self, pipe):
        generator, before = torch.Generator().manual_seed(0), torch.random.get_rng_state()
        drawn = generator.get_state()
        run(pipe, generator=generator)
        assert torch.equal(torch.random.get_rng_state(), before) and torch.equal(generator.get_state(), drawn)

    def test_a_then_b_then_a_leaves_no_trace(self, pipe):
        first = run(pipe)
        run(
            pipe, [pil(33, 17, mode="RGBA")], "neon city at night", strength=0.3, stroke_scale=2.0, preserve_color=True,
            mask_image=torch.ones(4, 4), callback_on_step_end=lambda p, *_: setattr(p, "_interrupt", True),
        )  # fmt: skip
        with pytest.raises(ValueError):
            run(pipe, strength=9)
        assert torch.equal(run(pipe), first)

    def test_weights_configs_and_inputs_stay_as_they_were(self, pipe):
        weights, configs = state(pipe), {n: copy.deepcopy(dict(p.config)) for n, p in [("vae", pipe.vae)]}
        image, array, mask, style = picture(), np.array(pil()), torch.ones(8, 8), picture(seed=1)
        given_ = [image.clone(), array.copy(), mask.clone(), style.clone()]
        prompt = [("stained glass", 0.5), ("very long", 0.5)]
        pipe([image, array], prompt, mask_image=mask, style_image=style, preserve_color=True, structure=0.5)
        for before, after in zip(given_, (image, array, mask, style), strict=True):
            assert np.array_equal(np.asarray(before), np.asarray(after))
        assert prompt == [("stained glass", 0.5), ("very long", 0.5)]
        assert all(torch.equal(value, weights[name]) for name, value in state(pipe).items())
        assert dict(pipe.vae.config) == configs["vae"]

    def test_works_under_inference_mode(self, pipe):
        expected = run(pipe)
        with torch.inference_mode():
            assert_close(run(pipe), expected)

    def test_results_hold_no_graph(self, pipe):
        assert not run(pipe).requires_grad and not run(pipe, output_type="latent").requires_grad


class TestSteps:
    """The public steps, each alone."""

    def test_gradients_flow_through_each_of_them(self, pipe):
        image = picture(45, 33).requires_grad_()
        embeds = pipe.encode_prompt("stained glass")
        latents = pipe.encode_image(image)
        latents.retain_grad()
        fused = pipe.fuse(latents, embeds, strength=0.9)
        pipe.decode(fused, embeds).square().mean().backward()
        assert latents.grad.abs().sum() > 0 and torch.isfinite(image.grad).all()
        assert image.grad.ne(0).float().mean() > 0.99
        for part in (pipe.text_encoder, pipe.fusion, pipe.vae):
            assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())

    @torch.no_grad()
    def test_together_they_are_the_call(self, pipe):
        embeds = pipe.encode_prompt("stained glass")
        decoded = pipe.decode(pipe.fuse(pipe.encode_image(picture(45, 33)), embeds, 0.7), embeds, 0.7)
        assert decoded.shape[-2:] == (48, 40)
        assert_close(run(pipe, picture(45, 33), strength=0.7), decoded[..., :45, :33].clamp(0, 1))

    def test_inputs_are_checked_with_the_defaults_of_a_call(self, pipe):
        pipe.check_inputs(picture(), "stained glass")
        with pytest.raises(ValueError, match="prompt is None and no style is loaded"):
            pipe.check_inputs(picture())
        given, taken = (inspect.signature(f).parameters for f in (pipe.check_inputs, pipe.__call__))
        for name in given:
            default = taken[name].default
            assert given[name].default == (tuple(default) if isinstance(default, list) else default), name

    @torch.no_grad()
    def test_latents_are_scaled_as_in_diffusers(self, pipe):
        raw = pipe.vae.encode(picture() * 2 - 1).latent_dist.mode()
        assert_close(pipe.encode_image(picture()), raw * pipe.vae.config.scaling_factor, atol=1e-6)

    def test_output_type_latent_gives_what_decode_takes(self, pipe):
        latents = run(pipe, picture(batch=2), output_type="latent")
        assert latents.shape == (2, 4, 6, 5)
        with torch.no_grad():
            decoded = pipe.decode(latents, pipe.encode_prompt("stained glass")).clamp(0, 1)
        assert_close(decoded, run(pipe, picture(batch=2)))
        mixed = run(pipe, [picture(), picture(32, 32)], output_type="latent")
        assert [tuple(z.shape) for z in mixed] == [(4, 6, 5), (4, 4, 4)]


class TestProgress:
    def test_one_tick_for_each_forward_pass(self, build, capsys):
        pipe = build()
        pipe.set_progress_bar_config(disable=False)
        run(pipe, [picture(48, 40), picture(32, 32)])
        assert "2/2" in capsys.readouterr().err
        pipe.set_progress_bar_config(disable=True)
        run(pipe)
        assert not capsys.readouterr().err


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"strength": -0.1}, "strength is -0.1, wanted a number from 0 to 1.5"),
            ({"strength": 1.6}, "strength is 1.6, wanted"),
            ({"strength": float("nan")}, "strength is nan, wanted"),
            ({"structure": -0.1}, "structure is -0.1, wanted a number from 0 to 1"),
            ({"structure": 1.1}, "structure is 1.1, wanted"),
            ({"stroke_scale": 0.0}, "stroke_scale is 0.0, wanted a number from 0.1 to 10"),
            ({"stroke_scale": 11.0}, "stroke_scale is 11.0, wanted"),
            ({"shading": 1.1}, "shading is 1.1, wanted a number from 0 to 1"),
            ({"feather": -1.0}, "feather is -1.0, wanted a number from 0"),
            ({"preserve_color": "hue"}, "preserve_color is 'hue', wanted False, True, 'luminance' or 'palette'"),
            ({"mix": "round", "prompt": [("a", 0.5), ("b", 0.5)]}, "got mode 'round'; wanted 'linear' or 'slerp'"),
            ({"stroke_scale": 2.0, "output_type": "latent"}, "latents hold strokes of one size only"),
            ({"mask_image": pil(), "output_type": "latent"}, "output_type is 'latent', but"),
            ({"structure": 0.5, "output_type": "latent"}, "output_type is 'latent', but"),
            ({"strength": "1"}, "strength is '1', wanted a number"),
            ({"prompt": [("a", float("nan")), ("b", 1.0)]}, "wanted finite numbers"),
            ({"num_images_per_prompt": 2.0}, "num_images_per_prompt is 2.0, wanted a whole number"),
            ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0, wanted a whole number from 1 on"),
            ({"output_type": "jpg"}, "output_type is 'jpg', wanted one of pil, np, pt, latent"),
            ({"generator": 42}, "generator is a int, wanted a torch.Generator"),
            ({"generator": [torch.Generator()] * 2}, "got 2 generators for 1 results"),
            ({"callback_on_step_end_tensor_inputs": ["noise"]}, r"has {'noise'}, wanted \['latents'\]"),
            ({"prompt": None}, "prompt is None and no style is loaded: give a prompt"),
            ({"prompt": []}, r"prompt is \[\], wanted a string"),
            ({"prompt": 3}, "prompt is 3, wanted a string"),
            ({"prompt": ["stained glass", 3]}, "prompt has 3, wanted a string"),
            ({"prompt": [("stained glass", "much")]}, r"prompt has \('stained glass', 'much'\), wanted"),
            ({"prompt": [("stained glass", 0.0)]}, "sum 0"),
            ({"prompt_embeds": torch.ones(1, 32)}, "both prompt and prompt_embeds"),
            ({"prompt": None, "prompt_embeds": torch.ones(1, 7)}, r"\(1, 7\), wanted \(1, 32\)"),
            ({"prompt": ["a", "b"], "image": picture(batch=3)}, "got 2 prompts for 3 pictures"),
            ({"style_image": picture(batch=3), "prompt": ["a", "b"]}, "got 2 prompts and 3 style images"),
            ({"image": torch.full((1, 3, 32, 32), torch.nan)}, "image holds NaN"),
            ({"image": []}, "image is an empty batch"),
            ({"image": torch.zeros(1, 3, 15, 16)}, "image is 16 x 15 px, wanted at least 16"),
            ({"mask_image": torch.full((8, 8), 255.0)}, "mask_image has values in"),
            ({"mask_image": torch.zeros(2, 8, 8)}, "got 2 masks for 1 pictures"),
            ({"latents": torch.zeros(4, 6, 5)}, r"latents have shape \(4, 6, 5\), wanted \(B, C, h, w\)"),
            ({"latents": torch.zeros(1, 4, 6, 6)}, r"\(1, 4, 6, 6\), wanted \(B, C, 6, 5\) for a picture of 40 x 48 px"),
            ({"latents": torch.zeros(2, 4, 6, 5)}, "got 2 latents for 1 pictures"),
            ({"latents": torch.zeros(1, 8, 6, 5)}, r"\(1, 8, 6, 5\), wanted \(B, 4, h, w\)"),
            ({"latents": torch.zeros(1, 4, 6, 5), "stroke_scale": 2.0}, "stroke_scale is 2.0, but latents"),
            ({"image": None}, "image is None, wanted a picture"),
            ({"image": None, "latents": torch.zeros(1, 4, 6, 5), "preserve_color": True}, "take from the picture"),
            ({"image": None, "latents": torch.zeros(1, 4, 6, 5), "structure": 0.5}, "take from the picture"),
            ({"image": None, "latents": torch.zeros(1, 4, 6, 5), "tone_only": True}, "take from the picture"),
            ({"image": None, "latents": torch.zeros(1, 4, 6, 5), "mask_image": pil()}, "take from the picture"),
        ],
        ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
    )  # fmt: skip
    def test_an_argument_out_of_range_gives_one_sentence(self, pipe, arguments, message):
        with pytest.raises(ValueError, match=message) as raised:
            pipe(**{"image": picture(), "prompt": "stained glass", **arguments})
        assert "\n" not in str(raised.value)

    def test_a_step_alone_says_what_it_lacks(self, pipe):
        latents = pipe.encode_image(picture())
        with pytest.raises(ValueError, match="prompt_embeds is None and no style is loaded"):
            pipe.fuse(latents)
        with pytest.raises(OSError, match="/none/there does not exist: give a folder"):
            StyleMambaPipeline.from_parts(vae=pipe.vae, text_encoder="/none/there")
        with pytest.raises(TypeError, match="config is a dict, wanted a PromptFitConfig"):
            pipe.fit_style(picture(), "ink", config={"epochs": 1})

    def test_a_prompt_without_its_tower_says_what_to_do(self, build):
        with pytest.raises(ValueError, match=r"text_encoder is None.*from_parts\(text_encoder="):
            run(build(text_encoder=None))
        with pytest.raises(ValueError, match=r"image_encoder is None.*from_parts\(image_encoder="):
            run(build(image_encoder=None), prompt=None, style_image=picture())

    @pytest.mark.parametrize(
        ("part", "weight", "stage"),
        [
            ("vae", "encoder.conv_in.weight", "encoding the picture"),
            ("fusion", "blocks.0.mixer.in_proj.weight", "fusing the style"),
            ("vae", "decoder.conv_in.weight", "decoding"),
        ],
    )
    def test_weights_that_are_not_finite_name_their_stage(self, pipe, part, weight, stage):
        with torch.no_grad():
            pipe.components[part].get_parameter(weight).fill_(torch.nan)
        with pytest.raises(
            FloatingPointError, match=f"^{stage} gave NaN or infinite values in torch.float32"
        ):
            run(pipe)


def test_tiny_paints_the_borders_of_an_even_picture_as_the_rest(monkeypatch):
    """A frame came from the zeros that the autoencoder sees beyond the picture. Strokes differ from place to place: 12 columns
    along a border may differ from the middle as much as 12 further in do."""
    pipe = StyleMambaPipeline.from_pretrained("tiny")
    pipe.set_progress_bar_config(disable=True)
    # As long a border as is painted at once: of 256 px the strokes' own differences are as large as the bound's margin.
    even = torch.linspace(0.7, 0.8, 512).view(1, 1, 512, 1) * torch.tensor([0.6, 0.8, 1.0]).view(1, 3, 1, 1)
    even = even.repeat(1, 1, 1, 512)

    def frame() -> float:
        at_borders, further_in = [], []
        for prompt in ("ukiyo-e woodblock print", "in the style of van Gogh", "stained glass window"):
            picture = pipe(even, prompt, output_type="pt").images[0]
            middle = picture[..., 64:-64].mean(-1)  # (3, H)

            def gap(part, middle=middle):
                return (part.mean(-1) - middle).abs().mean()

            at_borders += [gap(picture[..., :12]), gap(picture[..., -12:])]
            further_in += [gap(picture[..., 20:32]), gap(picture[..., -32:-20])]
        return float(sum(at_borders) / sum(further_in))

    assert frame() < 1.25
    monkeypatch.setattr(StyleMambaPipeline, "beyond", 0)
    assert frame() > 2  # what such a frame would be
