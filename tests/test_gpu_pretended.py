"""Everything stays on the GPU that should: pipelines, fits and scores on one that is pretended."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from pretended_gpu import PretendedGPU, on_gpu  # noqa: E402

from stylemamba import MambaSTPipeline, PromptFitConfig, SaMamPipeline, StyleMambaPipeline  # noqa: E402
from stylemamba.pipeline import metrics  # noqa: E402

CONTROLS = {"structure": 0.5, "shading": 0.4, "preserve_color": True, "protect_text": True, "feather": 2.0}


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def photo():
    return noise(1, 3, 64, 80)


@pytest.fixture
def mask(photo):
    mask = torch.zeros_like(photo[:, :1])
    mask[..., :30, :] = 1
    return mask


@pytest.fixture
def pipe():
    pipe = StyleMambaPipeline.from_pretrained("tiny")
    pipe.set_progress_bar_config(disable=True)
    return pipe


class TestTheGPUItself:
    def test_a_tensor_left_behind_is_found(self):
        with PretendedGPU():
            layer = torch.nn.Linear(3, 2).to("cuda")
            assert layer.weight.device.type == "cuda" and layer(torch.ones(1, 3, device="cuda")).is_cuda
            with pytest.raises(RuntimeError, match="same device"):
                layer(torch.ones(1, 3))
            with pytest.raises(RuntimeError, match="same device"):
                torch.cat([torch.ones(2), torch.ones(2).cuda()])
            with pytest.raises(TypeError, match="cpu"):
                torch.ones(2, device="cuda").numpy()
            assert torch.ones(2, device="cuda").cpu().numpy().sum() == 2

    def test_a_number_may_come_from_the_other_side_and_a_copy_may_cross(self):
        with PretendedGPU():
            there, here = torch.ones(2, device="cuda"), torch.zeros(2)
            assert on_gpu(there * torch.tensor(3.0))
            here.copy_(there)
            assert not on_gpu(here) and here.sum() == 2
            assert on_gpu(here.to(there)) and not on_gpu(here)

    def test_outside_of_it_torch_is_as_it_was(self):
        def replaced():
            return torch.load, torch.autograd.Function.__dict__["apply"], torch.Tensor._make_subclass

        real = replaced()
        with PretendedGPU():
            assert all(a is not b for a, b in zip(replaced(), real, strict=True))
        assert replaced() == real
        assert torch.nn.Parameter(torch.ones(1)).device.type == "cpu"


def test_a_stylization_with_every_control(pipe, photo, mask):
    plain = pipe(photo, "van gogh", mask_image=mask, output_type="pt", **CONTROLS).images
    with PretendedGPU():
        pipe.to("cuda")
        for moved in (photo, photo.to("cuda")):
            again = pipe(moved, "van gogh", mask_image=mask, output_type="pt", **CONTROLS).images
            torch.testing.assert_close(again.cpu(), plain.cpu(), rtol=0, atol=2e-3)
        pipe(photo, [("van gogh", 1.0), ("monet", 0.5)], mix="slerp", style_image=photo, strength=0.6)
        pipe(photo, "monet", tone_only=True, stroke_scale=2.0)
        latents = pipe(photo, "van gogh", output_type="latent").images
        assert on_gpu(latents)
        for given in (latents, latents.cpu()):
            pipe(latents=given, prompt_embeds=pipe.encode_prompt("monet").cpu())


def test_offloaded_part_by_part(photo):
    """The whole of `tiny` and of a SaMam: each part comes when it is called and goes after that."""
    tiny, samam = StyleMambaPipeline.from_pretrained("tiny"), SaMamPipeline.from_pretrained("samam-tiny")
    for pipe in (tiny, samam):
        pipe.set_progress_bar_config(disable=True)
        wanted = pipe(photo, style_image=photo, output_type="pt").images
        with PretendedGPU():
            pipe.enable_model_cpu_offload(device="cuda")
            for _ in range(2):
                found = pipe(photo, style_image=photo, output_type="pt").images
                torch.testing.assert_close(found.cpu(), wanted, rtol=0, atol=2e-3)
            if pipe is tiny:
                pipe(photo, "van gogh")
            parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
            hooked = [part for part in parts if hasattr(part, "_hf_hook")]
            assert hooked and not any(on_gpu(p) for part in hooked for p in part.parameters())


def test_tiles_of_a_part_that_is_offloaded(photo, components):
    pipe = StyleMambaPipeline(**components())
    pipe.set_progress_bar_config(disable=True)
    with PretendedGPU():
        pipe.enable_model_cpu_offload(device="cuda")
        pipe.enable_tiling(192)
        pipe(noise(1, 3, 208, 192), "van gogh")


def test_in_tiles(pipe):
    with PretendedGPU():
        pipe.to("cuda").enable_tiling(192)
        pipe(noise(1, 3, 208, 192), "van gogh")


@pytest.mark.parametrize("train", ["fusion+decoder", "decoder_lora"])
def test_a_fit_its_file_and_its_use(pipe, photo, train, tmp_path):
    file = tmp_path / "style.safetensors"
    with PretendedGPU():
        pipe.to("cuda")
        config = PromptFitConfig(preset=pipe.fit_preset, epochs=2, train=train)
        options = {"config": config, "checkpoint": tmp_path / "fit.pt"}
        pipe.fit_style([photo, photo], "monet", callback=lambda progress: False, **options)  # stopped
        pipe.fit_style([photo, photo], "monet", **options).save(file)  # and gone on
        name = pipe.load_style(file)
        pipe.set_styles([name], [0.5])
        pipe(photo)


def test_scores(pipe, photo):
    rows = metrics.score(
        photo, photo.flip(-1), "monet", style=photo, encoder=pipe.encoder, perceptual=pipe.perceptual
    )
    with PretendedGPU():
        pipe.to("cuda")
        again = metrics.score(
            photo.to("cuda"), photo.flip(-1), "monet", style=photo, encoder=pipe.encoder, perceptual=pipe.perceptual
        )  # fmt: skip
    assert {name: row["value"] for name, row in again.items()} == pytest.approx(
        {name: row["value"] for name, row in rows.items()}, rel=1e-3, abs=1e-6
    )


@pytest.mark.parametrize("kind, name", [(SaMamPipeline, "samam-tiny"), (MambaSTPipeline, "mamba-st-tiny")])
def test_the_image_guided(kind, name, photo, mask):
    pipe = kind.from_pretrained(name)
    pipe.set_progress_bar_config(disable=True)
    styles = [(noise(1, 3, 64, 64, seed=seed), 0.5) for seed in (1, 2)]
    with PretendedGPU():
        pipe.to("cuda")
        pipe(photo, style_image=styles, strength=0.5, mask_image=mask, **CONTROLS)
        if kind is MambaSTPipeline:
            pipe(photo, style_image=styles[0][0], shuffles=2, generator=torch.Generator().manual_seed(0))
