"""Where a pipeline comes from: folders, bundled names, the Hub's cache, single parts, and ComfyUI's context."""

import importlib
import json
import logging
import os
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    SiglipTextModel,
    SiglipVisionModel,
)

import stylemamba
import stylemamba.pipeline.loading
import stylemamba.weights
from stylemamba import StyleFusion, StyleMambaPipeline
from stylemamba.pipeline.fusion import PRESETS
from stylemamba.pipeline.loading import load_pipeline

SHAPE = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {
    **SHAPE, "vocab_size": 200, "max_position_embeddings": 16, "projection_size": 32,
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
}  # fmt: skip
VISION = {**SHAPE, "image_size": 32, "patch_size": 8}


def picture():
    return torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(0))


def run(pipe, **kwargs):
    pipe.set_progress_bar_config(disable=True)
    kwargs = {"prompt": "stained glass", **kwargs}
    return pipe(picture(), output_type="pt", **kwargs).images


def weights(pipe):
    return {
        f"{name}.{key}": value
        for name, part in pipe.components.items()
        if isinstance(part, torch.nn.Module)
        for key, value in part.state_dict().items()
    }


def assert_same(a, b):
    a, b = (weights(x) if isinstance(x, StyleMambaPipeline) else x.state_dict() for x in (a, b))
    assert a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.fixture
def saved(pipe, tmp_path) -> Path:
    """The folder of a saved pipeline."""
    pipe.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


class TestFolder:
    def test_the_model_index_names_the_public_modules(self, saved):
        index = json.loads((saved / "model_index.json").read_text())
        assert index["_class_name"] == "StyleMambaPipeline"
        assert index["fusion"] == ["stylemamba.pipeline.fusion", "StyleFusion"]
        assert index["perceptual"] == ["stylemamba.pipeline.perceptual", "VGGFeatures"]
        assert index["vae"] == ["diffusers", "AutoencoderKL"]
        assert index["text_encoder"] == ["transformers", "SiglipTextModel"]

    def test_loads_by_string_and_by_path_from_anywhere(self, pipe, saved, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for source in (str(saved), saved, "saved"):
            assert_same(StyleMambaPipeline.from_pretrained(source), pipe)

    def test_logit_scale_and_bias_survive(self, components, tmp_path):
        StyleMambaPipeline(**components(), logit_scale=11.0, logit_bias=-7.5).save_pretrained(tmp_path)
        config = StyleMambaPipeline.from_pretrained(tmp_path).config
        assert (config.logit_scale, config.logit_bias) == (11.0, -7.5)

    def test_a_component_can_be_given_instead(self, saved, taesd):
        mine = taesd()
        pipe = StyleMambaPipeline.from_pretrained(saved, vae=mine)
        assert pipe.vae is mine and torch.isfinite(run(pipe)).all()
        assert StyleMambaPipeline.from_pretrained(saved, perceptual=None).perceptual is None

    @pytest.mark.parametrize("missing", [("text_encoder", "tokenizer"), ("image_encoder", "perceptual")])
    def test_a_pipeline_saved_without_some_parts_loads_without_them(self, components, tmp_path, missing):
        StyleMambaPipeline(**components(**dict.fromkeys(missing))).save_pretrained(tmp_path)
        pipe = StyleMambaPipeline.from_pretrained(tmp_path)
        assert all(pipe.components[name] is None for name in missing)
        embeds = torch.ones(1, 32)
        assert torch.isfinite(run(pipe, prompt=None, prompt_embeds=embeds)).all()
        given_ = components()[missing[0]]
        assert (
            StyleMambaPipeline.from_pretrained(tmp_path, **{missing[0]: given_}).components[missing[0]]
            is given_
        )

    def test_dtype(self, saved):
        pipe = StyleMambaPipeline.from_pretrained(saved, dtype=torch.bfloat16)
        assert pipe.vae.dtype == pipe.fusion.dtype == pipe.text_encoder.dtype == torch.bfloat16
        assert pipe.fusion.blocks[0].mixer.A_log.dtype == torch.float32
        assert torch.isfinite(run(pipe)).all()

    def test_one_component_loads_alone(self, pipe, saved):
        assert_same(StyleFusion.from_pretrained(saved, subfolder="fusion"), pipe.fusion)

    def test_a_folder_that_holds_no_pipeline_says_so(self, tmp_path):
        with pytest.raises(OSError, match="has no model_index.json.*save_pretrained.*from_parts") as raised:
            StyleMambaPipeline.from_pretrained(tmp_path)
        assert "\n" not in str(raised.value)


class TestBundled:
    def test_a_bundled_name_stands_for_its_folder(self, pipe, saved, monkeypatch):
        registry = {"models": {"small": {"folder": "saved"}, "later": {"licence": "unknown"}}}
        (saved.parent / "registry.json").write_text(json.dumps(registry))
        monkeypatch.setattr(stylemamba.weights, "_HERE", saved.parent)
        loaded = StyleMambaPipeline.from_pretrained("small")
        assert_same(loaded, pipe)
        assert loaded.config._name_or_path == "small"  # and not a path of this machine
        with pytest.raises(OSError, match=r"'later' is neither a folder nor a bundled model \(small\)"):
            StyleMambaPipeline.from_pretrained("later", local_files_only=True)

    @pytest.mark.parametrize("name", stylemamba.weights.bundled_names())
    def test_every_bundled_model_loads_and_paints(self, name):
        pipe = load_pipeline(name, local_files_only=True)
        how = {} if isinstance(pipe, StyleMambaPipeline) else {"prompt": None, "style_image": 1 - picture()}
        assert not torch.equal(run(pipe, **how), run(pipe, **how, strength=0))
        if getattr(pipe, "reads_prompts", False):
            assert not torch.equal(run(pipe), run(pipe, prompt="an ink drawing"))

    def test_all_parts_have_one_precision_whatever_their_files_have(self):
        for how, wanted in (({}, torch.float32), ({"dtype": torch.bfloat16}, torch.bfloat16)):
            pipe = StyleMambaPipeline.from_pretrained("tiny", **how)
            parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
            assert len(parts) > 4 and {part.dtype for part in parts} == {wanted}

    def test_a_folder_is_loaded_by_its_own_class(self, saved, samam, mamba_st, tmp_path):
        assert type(load_pipeline(saved)) is StyleMambaPipeline
        for pipe in (samam(), mamba_st()):
            pipe.save_pretrained(tmp_path / "guided")
            assert type(load_pipeline(tmp_path / "guided")) is type(pipe)
        with pytest.raises(OSError, match="has no model_index.json"):
            load_pipeline(tmp_path)

    def test_a_model_that_is_not_there_is_not_listed(self, tmp_path, monkeypatch):
        (tmp_path / "registry.json").write_text(
            '{"models": {"here": {"folder": "here"}, "gone": {"folder": "gone"}}}'
        )
        (tmp_path / "here").mkdir()
        monkeypatch.setattr(stylemamba.weights, "_HERE", tmp_path)
        assert stylemamba.weights.bundled_names() == ["here"]
        assert stylemamba.weights.bundled_folder("gone") is None

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
    def test_what_a_broken_folder_holds_is_not_known(self, tmp_path, text):
        assert stylemamba.weights.pipeline_of(tmp_path) is None
        (tmp_path / "model_index.json").write_text(text)
        assert stylemamba.weights.pipeline_of(tmp_path) is None


class TestHub:
    """The real huggingface_hub on a cache laid out as it lays it out, without a network."""

    @pytest.fixture
    def cache(self, tmp_path):
        def cache(pipe, sha="0" * 40, branch="main", **kwargs):
            repo = tmp_path / "cache" / "models--someone--painter"
            (repo / "refs").mkdir(parents=True, exist_ok=True)
            (repo / "refs" / branch).write_text(sha)
            pipe.save_pretrained(repo / "snapshots" / sha, **kwargs)
            return tmp_path / "cache"

        return cache

    def test_a_hub_id(self, pipe, cache):
        loaded = StyleMambaPipeline.from_pretrained(
            "someone/painter", cache_dir=cache(pipe), local_files_only=True
        )
        assert_same(loaded, pipe)
        assert loaded.config._name_or_path == "someone/painter"
        torch.testing.assert_close(run(loaded), run(pipe))

    def test_revision_and_variant(self, pipe, components, cache):
        cache(StyleMambaPipeline(**components(perceptual=None)))
        folder = cache(pipe, sha="1" * 40, branch="v2", variant="fp16")
        loaded = StyleMambaPipeline.from_pretrained(
            "someone/painter", cache_dir=folder, local_files_only=True, revision="v2", variant="fp16"
        )
        assert_same(loaded, pipe)

    def test_a_part_without_the_variant_is_fetched_as_it_is(self, pipe, tmp_path, monkeypatch):
        """As diffusers has it. Only the network is not real: what is asked for is copied."""
        hub, local = tmp_path / "hub", tmp_path / "local"
        pipe.save_pretrained(hub, variant="fp16")
        pipe.save_pretrained(hub)
        for file in (hub / "fusion").glob("*.fp16.safetensors"):
            file.unlink()

        def snapshot_download(_, allow_patterns, **options):
            for file in filter(Path.is_file, hub.rglob("*")):
                name = file.relative_to(hub).as_posix()
                if any(fnmatch(name, pattern) for pattern in allow_patterns):
                    (local / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, local / name)
            return str(local)

        monkeypatch.setattr(stylemamba.pipeline.loading, "snapshot_download", snapshot_download)
        assert_same(StyleMambaPipeline.from_pretrained("someone/painter", variant="fp16"), pipe)
        weights = {file.relative_to(local).as_posix() for file in local.rglob("*.safetensors")}
        assert {name for name in weights if ".fp16." not in name} == {
            "fusion/diffusion_pytorch_model.safetensors"
        }

    def test_parts_that_were_not_saved(self, components, cache):
        folder = cache(StyleMambaPipeline(**components(text_encoder=None, tokenizer=None)))
        pipe = StyleMambaPipeline.from_pretrained("someone/painter", cache_dir=folder, local_files_only=True)
        assert pipe.text_encoder is None and pipe.tokenizer is None

    @pytest.mark.parametrize("source", ["someone/else", "tinny", "no/such/folder/here", "what is this?"])
    def test_a_name_that_is_nowhere_gives_one_sentence(self, tmp_path, source):
        with pytest.raises(OSError, match="is neither a folder nor a bundled model.*from the Hub") as raised:
            StyleMambaPipeline.from_pretrained(source, cache_dir=tmp_path, local_files_only=True)
        assert repr(source) in str(raised.value) and "\n" not in str(raised.value)


@pytest.fixture
def siglip(components, tmp_path):
    """`siglip()` saves a whole SigLIP checkpoint with its tokenizer, and gives the model and the folder."""

    def siglip(model=SiglipModel, config=SiglipConfig, vision=VISION, **save) -> tuple[torch.nn.Module, Path]:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            whole = model(config(text_config=TEXT, vision_config=vision)).eval()
        with torch.no_grad():
            whole.logit_scale.fill_(2.5)
            whole.logit_bias.fill_(-9.0)
        whole.save_pretrained(tmp_path / "siglip", **save)
        components()["tokenizer"].save_pretrained(tmp_path / "siglip")
        return whole, tmp_path / "siglip"

    return siglip


@pytest.fixture
def vae(components) -> AutoencoderKL:
    return components()["vae"]


class TestFromParts:
    @torch.no_grad()
    def test_a_whole_siglip_checkpoint_brings_both_towers_tokenizer_scale_and_bias(self, siglip, vae):
        whole, folder = siglip()
        pipe = StyleMambaPipeline.from_parts(vae, folder, preset="tiny")
        ids, pixels = pipe.encoder.tokenize(["stained glass"]), picture()[..., :32] * 2 - 1
        torch.testing.assert_close(pipe.text_encoder(ids).pooler_output, whole.text_model(ids).pooler_output)
        torch.testing.assert_close(
            pipe.image_encoder(pixels).pooler_output, whole.vision_model(pixels).pooler_output
        )
        assert pipe.config.logit_scale == pytest.approx(torch.tensor(2.5).exp().item())
        assert pipe.config.logit_bias == -9.0
        logits = pipe.encoder.embed_pixels(pixels) @ pipe.encoder.embed_texts(["stained glass"]).T
        logits = logits * pipe.config.logit_scale + pipe.config.logit_bias
        torch.testing.assert_close(logits, whole(input_ids=ids, pixel_values=pixels).logits_per_image)

    def test_a_checkpoint_in_several_files(self, siglip, vae):
        _, folder = siglip(max_shard_size="40KB")
        assert len(list(folder.glob("*.safetensors"))) > 1
        config = StyleMambaPipeline.from_parts(vae, folder, preset="tiny").config
        assert config.logit_scale == pytest.approx(12.18249) and config.logit_bias == -9.0

    def test_naflex_checkpoints(self, siglip, vae):
        _, folder = siglip(Siglip2Model, Siglip2Config, {**SHAPE, "num_patches": 16, "patch_size": 8})
        pipe = StyleMambaPipeline.from_parts(vae, folder, preset="tiny")
        assert type(pipe.image_encoder).__name__ == "Siglip2VisionModel"
        assert torch.isfinite(run(pipe, style_image=picture())).all()

    def test_towers_that_were_saved_alone(self, siglip, vae, tmp_path, components):
        _, folder = siglip()
        SiglipTextModel.from_pretrained(folder).save_pretrained(tmp_path / "text")
        SiglipVisionModel.from_pretrained(folder).save_pretrained(tmp_path / "vision")
        tokenizer = components()["tokenizer"]
        pipe = StyleMambaPipeline.from_parts(vae, tmp_path / "text", tokenizer=tokenizer, preset="tiny")
        assert pipe.image_encoder is None and pipe.config.logit_scale is None
        both = StyleMambaPipeline.from_parts(
            vae, tmp_path / "text", tokenizer=tokenizer, image_encoder=tmp_path / "vision", preset="tiny"
        )
        assert_same(both, StyleMambaPipeline.from_parts(vae, folder, preset="tiny"))
        with pytest.raises(ValueError, match="holds no text tower, only vision"):
            StyleMambaPipeline.from_parts(vae, tmp_path / "vision", tokenizer=tokenizer)

    def test_loading_one_tower_does_not_list_the_weights_of_the_other(self, siglip, vae, caplog, capfd):
        _, folder = siglip()
        logging.getLogger("transformers").addHandler(caplog.handler)
        try:
            StyleMambaPipeline.from_parts(vae, folder, preset="tiny")
        finally:
            logging.getLogger("transformers").removeHandler(caplog.handler)
        assert "UNEXPECTED" not in caplog.text + "".join(capfd.readouterr())

    def test_loaded_objects_are_taken_as_they_are(self, components):
        parts = {k: v for k, v in components().items() if k not in ("style_decoder", "style_memory")}
        pipe = StyleMambaPipeline.from_parts(**parts)
        assert all(pipe.components[name] is part for name, part in parts.items())

    def test_an_autoencoder_from_its_own_folder_and_from_that_of_a_whole_pipeline(
        self, pipe, saved, components
    ):
        parts = components()
        for folder in (saved / "vae", saved):
            loaded = StyleMambaPipeline.from_parts(folder, parts["text_encoder"], preset="tiny").vae
            assert type(loaded) is AutoencoderKL
            assert_same(loaded, pipe.vae)

    def test_an_autoencoder_of_another_class(self, taesd, components, tmp_path):
        taesd().save_pretrained(tmp_path)
        pipe = StyleMambaPipeline.from_parts(tmp_path, components()["text_encoder"], preset="tiny")
        assert type(pipe.vae).__name__ == "AutoencoderTiny"

    @pytest.mark.parametrize("preset", PRESETS)
    def test_a_preset_gives_a_fresh_identity_of_the_width_of_the_text_tower(self, components, preset):
        parts = components()
        pipe = StyleMambaPipeline.from_parts(
            parts["vae"], parts["text_encoder"], tokenizer=parts["tokenizer"], preset=preset
        )
        assert {
            **pipe.fusion.config,
            **PRESETS[preset],
            "cond_dim": 32,
            "latent_channels": 4,
        } == pipe.fusion.config
        assert torch.equal(run(pipe), run(pipe, strength=0))

    def test_the_same_preset_starts_from_the_same_weights_and_draws_nothing(self, components):
        parts, fusions = components(), []
        for seed in (1, 2):
            torch.manual_seed(seed)
            before = torch.random.get_rng_state()
            fusions.append(StyleMambaPipeline.from_parts(parts["vae"], parts["text_encoder"]).fusion)
            assert torch.equal(torch.random.get_rng_state(), before)
        assert_same(*fusions)

    def test_dtype_is_that_of_everything_loaded(self, siglip, saved):
        _, folder = siglip()
        pipe = StyleMambaPipeline.from_parts(saved, folder, preset="tiny", dtype=torch.bfloat16)
        parts = (pipe.vae, pipe.text_encoder, pipe.image_encoder, pipe.fusion)
        assert {part.dtype for part in parts} == {torch.bfloat16}

    def test_what_was_built_of_parts_can_be_saved_and_loaded(self, siglip, saved, tmp_path):
        _, folder = siglip()
        pipe = StyleMambaPipeline.from_parts(saved, folder, preset="tiny")
        pipe.save_pretrained(tmp_path / "built")
        loaded = StyleMambaPipeline.from_pretrained(tmp_path / "built")
        assert_same(loaded, pipe)
        assert loaded.config.logit_scale == pipe.config.logit_scale
        torch.testing.assert_close(run(loaded), run(pipe))

    def test_exception(self, components, saved, siglip, tmp_path):
        parts = components()
        _, folder = siglip()
        with pytest.raises(ValueError, match="text_encoder is None, wanted a SigLIP text tower"):
            StyleMambaPipeline.from_parts(parts["vae"])
        with pytest.raises(ValueError, match="preset is 'huge', wanted one of paper, wide, dense, tiny"):
            StyleMambaPipeline.from_parts(parts["vae"], parts["text_encoder"], preset="huge")
        with pytest.raises(OSError, match="no autoencoder at .*, neither there nor in its folder vae"):
            StyleMambaPipeline.from_parts(tmp_path / "nothing", parts["text_encoder"])
        UNet2DConditionModel(block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)
            ).save_pretrained(tmp_path / "unet")  # fmt: skip
        with pytest.raises(ValueError, match="is a UNet2DConditionModel, wanted an autoencoder"):
            StyleMambaPipeline.from_parts(tmp_path / "unet", parts["text_encoder"])
        CLIPTextConfig().save_pretrained(tmp_path / "clip")
        with pytest.raises(ValueError, match="is a clip_text_model checkpoint, wanted SigLIP"):
            StyleMambaPipeline.from_parts(parts["vae"], tmp_path / "clip")
        os.replace(saved / "vae" / "diffusion_pytorch_model.safetensors", folder / "model.safetensors")
        with pytest.raises(ValueError, match=r"lacks \d+ weights of its text tower"):
            StyleMambaPipeline.from_parts(parts["vae"], folder)


IN_COMFYUI = """
import asyncio, importlib.util, json, os, sys, types

folder, saved, out = sys.argv[1:]
host_nodes = sys.modules["nodes"] = types.ModuleType("nodes")  # ComfyUI's own

# what ComfyUI's load_custom_node does
name = folder.replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, os.path.join(folder, "__init__.py"))
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
heavy = sorted({"torch", "diffusers", "transformers"} & set(sys.modules))

import stylemamba
from stylemamba import StyleFusion, StyleMambaPipeline

pipe = StyleMambaPipeline.from_pretrained(saved)
pipe.save_pretrained(out)
again = StyleMambaPipeline.from_pretrained(out)
ours = [m.__file__ for m in sys.modules.values() if str(getattr(m, "__file__", None)).startswith(folder)]
copies = {file for file in ours if ours.count(file) > 1}
print(json.dumps({
    "heavy": heavy,
    "root": os.path.dirname(stylemamba.__file__),
    "class": [StyleMambaPipeline.__module__, type(again.fusion).__module__],
    "one class": type(pipe.fusion) is type(again.fusion) is StyleFusion,
    "copies": sorted(os.path.relpath(file, folder) for file in copies),
    "entry": asyncio.iscoroutinefunction(module.comfy_entrypoint),
    "old entry": hasattr(module, "NODE_CLASS_MAPPINGS"),
    "web": module.WEB_DIRECTORY,
    "host nodes": sys.modules["nodes"] is host_nodes,
    "on sys.path": folder in map(os.path.abspath, sys.path),
    "same": all(
        bool((a == b).all()) for p, q in zip(pipe.components.values(), again.components.values()) if hasattr(p, "parameters")
        for a, b in zip(p.parameters(), q.parameters())
    ),
}))
"""


class TestComfyUi:
    def test_pip_and_comfyui_read_what_the_other_wrote(self, pipe, saved, tmp_path):
        """In one fresh process, since it takes seconds: pip -> ComfyUI -> ComfyUI -> pip; pip -> pip is TestFolder."""
        folder, out = tmp_path / "custom_nodes" / "StyleMamba.v2", tmp_path / "out"
        root = Path(stylemamba.__file__).parent
        for part in ("nodes", "pipeline", "weights"):
            shutil.copytree(
                root / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors")
            )
        shutil.copy(root / "__init__.py", folder)
        done = subprocess.run(
            [sys.executable, "-c", IN_COMFYUI, str(folder), str(saved), str(out)],
            capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1]) == {
            "heavy": [],
            "root": str(folder),
            "class": ["stylemamba.pipeline.pipeline_stylemamba", "stylemamba.pipeline.fusion"],
            "one class": True,
            "copies": ["__init__.py"],  # the door itself, under the host's name and under ours
            "entry": True,
            "old entry": False,
            "web": "./web",
            "host nodes": True,
            "on sys.path": False,
            "same": True,
        }
        index = json.loads((out / "model_index.json").read_text())
        assert index["fusion"] == ["stylemamba.pipeline.fusion", "StyleFusion"]
        assert_same(StyleMambaPipeline.from_pretrained(out), pipe)

    def test_in_the_pip_context_there_is_one_copy_of_each_class(self):
        module = importlib.import_module("stylemamba.pipeline.pipeline_stylemamba")
        assert module.StyleMambaPipeline is StyleMambaPipeline
        assert StyleMambaPipeline.__module__ == module.__name__ and module.StyleFusion is StyleFusion


WITHOUT_ACCELERATE = """
import importlib.util, sys

# as if it were not installed: only the extras bring it
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name.split(".")[0] == "accelerate" else find_spec(name, *a)
import torch
from diffusers.utils import is_accelerate_available
assert not is_accelerate_available()
from stylemamba import StyleFusion, StyleMambaPipeline

pipe = StyleMambaPipeline.from_pretrained(sys.argv[1])
assert pipe(torch.rand(1, 3, 32, 32), "stained glass", output_type="pt").images.shape == (1, 3, 32, 32)
half = StyleFusion.from_pretrained(sys.argv[1], subfolder="fusion", dtype=torch.bfloat16)
assert half.dtype == torch.bfloat16
"""


def test_the_base_install_loads_without_accelerate(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_ACCELERATE, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
