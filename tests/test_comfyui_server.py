"""The pack and its example workflows in a real ComfyUI server; see docs/testing.md. Needs `COMFYUI_PATH`."""
# ruff: noqa: E402 (real_comfyui.py lies beside this file, and is no test)

import json
import sys
from pathlib import Path

import av
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

from stylemamba import PromptFitConfig, StyleMambaPipeline, score
from stylemamba.pipeline.deflicker import stylize_frames
from stylemamba.pipeline.images import read_images
from stylemamba.pipeline.lut import cube_text, fit_lut
from stylemamba.pipeline.regions import Region, stylize_regions
from stylemamba.weights import named_styles

sys.path.insert(0, str(Path(__file__).parent))
from real_comfyui import CHECKOUT, WORKFLOWS, RealComfyUI, nodes_of, read_workflow, to_api

pytestmark = pytest.mark.skipif(not CHECKOUT, reason="needs a whole ComfyUI: set COMFYUI_PATH")

IDS = {f"StyleMamba{name}" for name in (
    "Loader", "PromptFit", "Fuse", "Decode", "Stylize", "BlendStyles", "LoadStyle", "SaveStyle", "StyleFromImage", "Score",
    "Region", "SaveLUT",
)}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = RealComfyUI(tmp_path_factory.mktemp("comfyui"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def prompt(server):
    """A workflow by its name -> the prompt of it."""
    return lambda name: to_api(read_workflow(name), server.get("/object_info"))


@pytest.fixture(scope="module")
def pipe() -> StyleMambaPipeline:
    pipe = StyleMambaPipeline.from_pretrained("tiny")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def photo(server) -> torch.Tensor:
    """What Load Image loads, (1, 3, H, W)."""
    with Image.open(server.base / "input" / "example.png") as picture:
        return read_images(picture.convert("RGB"))[0].rgb


def run(pipe, photo, *args, **settings) -> torch.Tensor:
    return pipe(photo, *args, output_type="pt", **settings).images


def fit_preset(pipe, inputs: dict) -> str:
    return pipe.fit_preset if inputs["preset"] == "auto" else inputs["preset"]


def fit(pipe, photo, inputs: dict):
    names = ("epochs", "train", "source_prompt")
    config = PromptFitConfig(preset=fit_preset(pipe, inputs), **{name: inputs[name] for name in names})
    generator = torch.Generator().manual_seed(inputs["seed"])
    return pipe.fit_style(photo, inputs["prompt"], config=config, generator=generator)


def in_styles(pipe, photo, *styles) -> torch.Tensor:
    """styles: (style, weight)."""
    names = [pipe.load_style(style, f"style {index}") for index, (style, _) in enumerate(styles)]
    pipe.set_styles(names, weights=[weight for _, weight in styles])
    result = run(pipe, photo)
    pipe.unload_styles()
    return result


def load_latent(server, done, node: str) -> torch.Tensor:
    (file,) = done.outputs[node]["latents"]
    return load_file(server.base / "output" / file["subfolder"] / file["filename"])["latent_tensor"]


def write_checkpoint(path: Path) -> None:
    """A Stable Diffusion 1.5 checkpoint: autoencoder of random weights, all else 0, which takes no room on the disk."""
    sys.path.insert(0, CHECKOUT)
    from comfy.cli_args import args

    args.cpu = True
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.ops import disable_weight_init

    with torch.device("meta"):
        unet = UNetModel(
            image_size=32, in_channels=4, out_channels=4, model_channels=320, num_res_blocks=[2] * 4, channel_mult=(1, 2, 4, 4),
            num_heads=8, use_spatial_transformer=True, context_dim=768, transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
            transformer_depth_middle=1, transformer_depth_output=[1] * 9 + [0] * 3, operations=disable_weight_init,
        )  # fmt: skip
        words = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
        )  # fmt: skip
    names = {f"model.diffusion_model.{name}": value for name, value in unet.state_dict().items()}
    for name, value in words.state_dict().items():
        names[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    names |= {f"first_stage_model.{name}": value for name, value in vae.state_dict().items()}

    header, end = {}, 0
    for name, value in names.items():
        header[name] = {
            "dtype": "F16",
            "shape": list(value.shape),
            "data_offsets": [end, end + 2 * value.numel()],
        }
        end += 2 * value.numel()
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, value in names.items():
            if not value.is_meta:
                file.seek(8 + len(text) + header[name]["data_offsets"][0])
                file.write(value.detach().half().numpy().tobytes())
        file.truncate(8 + len(text) + end)


def assert_close(pictures: list[Image.Image], wanted: torch.Tensor) -> None:
    """Within 2 of 255, pixel by pixel. wanted: (B, 3, H, W)."""
    assert len(pictures) == len(wanted)
    for picture, tensor in zip(pictures, wanted, strict=True):
        found = read_images(picture.convert("RGB"))[0].rgb[0]
        assert found.shape == tensor.shape
        assert (found - tensor).abs().max() * 255 <= 2


class TestPack:
    def test_every_node_is_there_and_explains_itself(self, server):
        found = {name: info for name, info in server.get("/object_info").items() if name in IDS}
        assert found.keys() == IDS
        for name, info in found.items():
            assert info["python_module"] == "custom_nodes.StyleMamba" and info["category"] == "StyleMamba"
            assert info["description"], name
            inputs = [
                spec for group in ("required", "optional") for spec in info["input"].get(group, {}).items()
            ]
            assert all(options[0]["tooltip"] for _, (_, *options) in inputs), name
            assert len(info["output_tooltips"]) == len(info["output"]) and all(info["output_tooltips"]), name

    def test_loads_without_a_complaint(self, server):
        log = server.log()
        assert "custom_nodes/StyleMamba" in log
        assert not [line for line in log.splitlines() if "StyleMamba" in line and "IMPORT FAILED" in line]

    def test_the_template_browser_is_served_workflows_and_pictures(self, server):
        assert sorted(server.get("/workflow_templates")["StyleMamba"]) == list(WORKFLOWS)
        for name, path in WORKFLOWS.items():
            address = f"/api/workflow_templates/StyleMamba/{name}"
            assert server.read(f"{address}.json") == path.read_bytes()
            assert server.read(f"{address}.jpg")[:2] == b"\xff\xd8"

    @pytest.mark.parametrize("name", ["../../comfyui.db", "/etc/passwd"])
    def test_a_prompt_that_asks_for_a_file_elsewhere_is_refused(self, server, name):
        """By the host, where it looks into the lists of such nodes, else by the node."""
        asked = {
            "1": {"class_type": "StyleMambaLoadStyle", "inputs": {"style_name": name}},
            "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 2]}},
        }
        try:
            said = server.run(asked).messages[-1][1]["exception_message"]
        except RuntimeError as refusal:
            said = str(refusal)
        assert "there is no style" in said or "Value not in list" in said


class TestWorkflows:
    """Each example, with its own settings, against the Python package."""

    def test_there_are_eight(self):
        assert [name[0] for name in WORKFLOWS] == list("12345678")

    def test_stylize(self, server, prompt, pipe, photo):
        asked = prompt("1-stylize")
        done = server.run(asked)
        (stylize,), (save,) = nodes_of(asked, "StyleMambaStylize"), nodes_of(asked, "SaveImage")
        wanted = run(pipe, photo, asked[stylize]["inputs"]["prompt"])
        assert_close(server.pictures(done, save), wanted)
        assert (wanted - photo).abs().mean() > 0.02  # and it is no copy

    def test_prompt_fit_save_reuse(self, server, prompt, pipe, photo):
        name = "2-prompt-fit-save-reuse"
        asked = prompt(name)
        (wish,), (save,) = nodes_of(asked, "StyleMambaPromptFit"), nodes_of(asked, "SaveImage")
        done = server.run(asked)
        inputs = asked[wish]["inputs"]
        steps = PromptFitConfig(preset=fit_preset(pipe, inputs), epochs=inputs["epochs"]).steps
        assert done.steps(wish, steps)[-1] == steps and done.previews
        style = fit(pipe, photo, inputs)
        assert_close(server.pictures(done, save), in_styles(pipe, photo, (style, 1.0)))
        (losses,) = server.pictures(done, *nodes_of(asked, "LossGraphNode"))
        assert losses.size[0] > 100

        # The muted nodes are woken, as the note says: the file is in the list, and gives the same picture.
        workflow = read_workflow(name)
        for node in workflow["nodes"]:
            node["mode"] = 0
        info = server.get("/object_info")
        stored, *named = info["StyleMambaLoadStyle"]["input"]["required"]["style_name"][1]["options"]
        assert named == list(named_styles())
        again = to_api(workflow, info)
        (load,) = nodes_of(again, "StyleMambaLoadStyle")
        assert again[load]["inputs"]["style_name"] == stored
        done = server.run(again)
        (first,), (second,) = (
            server.pictures(done, save),
            server.pictures(done, *nodes_of(again, "PreviewImage")),
        )
        # stored in half precision
        assert_close([second], read_images(first)[0].rgb)

    def test_fuse_before_ksampler(self, server, prompt):
        """With a checkpoint of the true shape whose UNet predicts no noise. The sampler then gives back what Fuse wrote,
        plus sigma times the noise of the seed, in the scale of the model: 0.18215 of the host's latents."""
        write_checkpoint(server.base / "models" / "checkpoints" / "v1-5-pruned-emaonly-fp16.safetensors")
        asked = prompt("3-fuse-before-ksampler")
        ((scale,), (fit_node,), (fuse,), (sampler,)) = (
            nodes_of(asked, kind)
            for kind in ("ImageScaleToTotalPixels", "StyleMambaPromptFit", "StyleMambaFuse", "KSampler")
        )
        asked[scale]["inputs"]["megapixels"] = 0.01
        asked[fit_node]["inputs"]["epochs"] = 1
        asked[sampler]["inputs"].update(steps=1, denoise=0.01)
        for name, node in (("given", fuse), ("sampled", sampler)):
            inputs = {"samples": [node, 0], "filename_prefix": name}
            asked[name] = {"class_type": "SaveLatent", "inputs": inputs}
        done = server.run(asked)
        assert done.end == "execution_success", done.messages[-1]

        given, sampled = (load_latent(server, done, name) for name in ("given", "sampled"))
        assert given.shape == (1, 4, 13, 13) and given.std() > 1e-3  # of 102 px, padded to 104
        noise = torch.randn(given.shape, generator=torch.manual_seed(asked[sampler]["inputs"]["seed"]))
        added = (sampled - given) * 0.18215
        sigma = (added * noise).sum() / noise.square().sum()
        assert 0.01 < sigma < 0.1
        torch.testing.assert_close(added, sigma * noise, atol=1e-4, rtol=0)
        (picture,) = server.pictures(done, *nodes_of(asked, "SaveImage"))
        assert picture.size == (104, 104)

    def test_two_styles_by_mask(self, server, prompt, pipe, photo):
        asked = prompt("4-two-styles-by-mask")
        done = server.run(asked)
        first, second = (asked[name]["inputs"]["prompt"] for name in nodes_of(asked, "StyleMambaRegion"))
        (threshold,) = nodes_of(asked, "ThresholdMask")
        mask = (photo[:, 2] > asked[threshold]["inputs"]["value"]).float()
        assert 0.1 < mask.mean() < 0.9
        regions = [Region(mask, first), Region(1 - mask, second)]
        wanted = stylize_regions(pipe, photo, regions, output_type="pt")
        assert_close(server.pictures(done, *nodes_of(asked, "SaveImage")), wanted)

    def test_blend_of_three(self, server, prompt, pipe, photo):
        asked = prompt("5-blend-of-three")
        done = server.run(asked)
        styles = [fit(pipe, photo, asked[name]["inputs"]) for name in nodes_of(asked, "StyleMambaPromptFit")]
        inner, outer = (asked[name]["inputs"] for name in nodes_of(asked, "StyleMambaBlendStyles"))
        weights = [
            inner["weight_a"] * outer["weight_a"], inner["weight_b"] * outer["weight_a"], outer["weight_b"],
        ]  # fmt: skip
        wanted = in_styles(pipe, photo, *zip(styles, weights, strict=True))
        assert_close(server.pictures(done, *nodes_of(asked, "SaveImage")), wanted)

    def test_video(self, server, prompt, pipe, photo):
        asked = prompt("6-video")
        (stylize,) = nodes_of(asked, "StyleMambaStylize")
        # beside the film, which loses by its compression, the frames as they are
        asked["frames"] = {"class_type": "PreviewImage", "inputs": {"images": [stylize, 0]}}
        crops = [asked[name]["inputs"] for name in nodes_of(asked, "ImageCrop")]
        for crop in crops:  # which are for ComfyUI's picture at its full size
            crop.update({side: crop[side] // 2 for side in ("width", "height", "x", "y")})
        done = server.run(asked)
        frames = [photo[..., c["y"] :, c["x"] :][..., : c["height"], : c["width"]] for c in crops]
        inputs = asked[stylize]["inputs"]
        assert inputs["deflicker"] == 0.9
        shown = stylize_frames(
            lambda frame: run(pipe, frame, inputs["prompt"]), frames, deflicker=inputs["deflicker"]
        )
        wanted = torch.cat(list(shown))
        assert_close(server.pictures(done, "frames"), wanted)

        (file,) = done.outputs[nodes_of(asked, "SaveVideo")[0]]["images"]
        with av.open(server.base / "output" / file["subfolder"] / file["filename"]) as video:
            stream = video.streams.video[0]
            assert stream.average_rate == asked[nodes_of(asked, "CreateVideo")[0]]["inputs"]["fps"]
            film = [
                torch.from_numpy(frame.to_ndarray(format="rgb24")) / 255 for frame in video.decode(stream)
            ]
        assert len(film) == len(frames)
        assert (torch.stack(film).movedim(-1, 1) - wanted).abs().mean() < 0.05

    def test_style_from_image(self, server, prompt, pipe, photo):
        asked = prompt("7-style-from-image")
        done = server.run(asked)
        paint, _ = nodes_of(asked, "StyleMambaStylize")
        painting = run(pipe, photo, asked[paint]["inputs"]["prompt"])
        assert_close(server.pictures(done, *nodes_of(asked, "PreviewImage")), painting)
        wanted = run(pipe, photo.flip(-1), style_image=painting)
        assert_close(server.pictures(done, *nodes_of(asked, "SaveImage")), wanted)

    def test_score_and_compare(self, server, prompt, pipe, photo):
        asked = prompt("8-score-and-compare")
        done = server.run(asked)
        painted = []
        for stylize, measure in zip(
            nodes_of(asked, "StyleMambaStylize"), nodes_of(asked, "StyleMambaScore"), strict=True
        ):
            inputs = asked[stylize]["inputs"]
            painted.append(run(pipe, photo, inputs["prompt"], strength=inputs["strength"]))
            rows = score(
                painted[-1], photo, asked[measure]["inputs"]["prompt"], encoder=pipe.encoder, perceptual=pipe.perceptual
            )  # fmt: skip
            (text,) = done.outputs[measure]["text"]
            found = json.loads(text)
            assert found.keys() == rows.keys()
            for name, row in rows.items():
                assert found[name]["value"] == pytest.approx(row["value"], abs=1e-3), name
        gap = torch.ones(
            1, 3, photo.shape[-2], asked[nodes_of(asked, "ImageStitch")[0]]["inputs"]["spacing_width"]
        )
        wanted = torch.cat([photo, gap, painted[0], gap, painted[1]], dim=-1)
        assert_close(server.pictures(done, *nodes_of(asked, "SaveImage")), wanted)


class TestNewWorkflow:
    """Nodes that no example has, as a user would put them together."""

    def test_a_style_picture_and_the_model_that_paints_from_it(self, server, prompt, samam, photo):
        """No loader, and a model of the user's own that was put there while the server ran."""
        samam().save_pretrained(server.base / "models" / "stylemamba" / "my-samam")
        assert (
            "my-samam"
            in server.get("/object_info")["StyleMambaStyleFromImage"]["input"]["optional"]["method"][1][
                "options"
            ]
        )
        asked = prompt("1-stylize")
        ((load,), (stylize,), (save,)) = (
            nodes_of(asked, kind) for kind in ("LoadImage", "StyleMambaStylize", "SaveImage")
        )
        asked["style"] = {
            "class_type": "StyleMambaStyleFromImage",
            "inputs": {"image": [load, 0], "method": "my-samam"},
        }
        asked[stylize]["inputs"]["style"] = ["style", 0]
        done = server.run(asked)
        assert done.end == "execution_success", done.messages[-1]
        wanted = samam()(photo, photo, output_type="pt").images
        assert_close(server.pictures(done, save), wanted)

        asked[save]["inputs"]["images"] = [load, 0]
        asked["keep"] = {
            "class_type": "StyleMambaSaveStyle",
            "inputs": {"style": ["style", 0], "file_name": "seen"},
        }
        refused = server.run(asked)
        assert refused.end == "execution_error"
        assert "a picture for 'my-samam': save the picture" in refused.messages[-1][1]["exception_message"]

    def test_a_blend_of_one_style_and_nothing(self, server, prompt, pipe, photo):
        asked = prompt("1-stylize")
        (stylize,), (save,) = nodes_of(asked, "StyleMambaStylize"), nodes_of(asked, "SaveImage")
        asked["words"] = {"class_type": "PrimitiveString", "inputs": {"value": "stained glass"}}
        asked["blend"] = {
            "class_type": "StyleMambaBlendStyles",
            "inputs": {"style_a": ["words", 0], "weight_a": 0.5, "weight_b": 0.5, "mix": "linear"},
        }
        asked[stylize]["inputs"]["style"] = ["blend", 0]
        done = server.run(asked)
        assert done.end == "execution_success", done.messages[-1]
        assert_close(server.pictures(done, save), run(pipe, photo, "stained glass"))

    def test_weighted_prompts_by_slerp_and_their_tone_as_a_table(self, server, prompt, pipe, photo):
        asked = prompt("1-stylize")
        ((load,), (stylize,), (save,)) = (
            nodes_of(asked, kind) for kind in ("LoadImage", "StyleMambaStylize", "SaveImage")
        )
        asked["words"] = {"class_type": "PrimitiveString", "inputs": {"value": "stained glass"}}
        asked["named"] = {"class_type": "StyleMambaLoadStyle", "inputs": {"style_name": "starry-night"}}
        asked["blend"] = {
            "class_type": "StyleMambaBlendStyles",
            "inputs": {
                "style_a": ["words", 0],
                "weight_a": 0.6,
                "style_b": ["named", 0],
                "weight_b": 0.4,
                "mix": "slerp",
            },
        }
        asked[stylize]["inputs"]["style"] = ["blend", 0]
        asked["table"] = {
            "class_type": "StyleMambaSaveLUT",
            "inputs": {"content": [load, 0], "stylized": [stylize, 0], "file_name": "tone"},
        }
        done = server.run(asked)
        assert done.end == "execution_success", done.messages[-1]
        mixture = [("stained glass", 0.6), (named_styles()["starry-night"], 0.4)]
        wanted = run(pipe, photo, mixture, mix="slerp")
        assert_close(server.pictures(done, save), wanted)
        assert done.outputs["table"]["text"] == ["Saved as tone.cube"]
        path = server.base / "output" / "tone.cube"
        numbers = [
            torch.tensor(
                [[float(n) for n in line.split()] for line in text.splitlines() if line[0].isdigit()]
            )
            for text in (path.read_text(), cube_text(fit_lut(photo, wanted), "tone"))
        ]
        torch.testing.assert_close(*numbers, atol=2e-3, rtol=0)

        # another tone under that name: a sentence, and the file stays
        before = path.read_bytes()
        asked["blend"]["inputs"]["mix"] = "linear"
        refused = server.run(asked)
        assert refused.end == "execution_error"
        assert "tone.cube is in the output folder already" in refused.messages[-1][1]["exception_message"]
        assert path.read_bytes() == before


class TestFit:
    """A fit that is cut short in the real server. Long enough to be caught midway."""

    EPOCHS = 40

    def wish(self, prompt, seed: int) -> tuple[dict, str, list]:
        asked = prompt("2-prompt-fit-save-reuse")
        (fit_node,) = nodes_of(asked, "StyleMambaPromptFit")
        asked[fit_node]["inputs"].update(epochs=self.EPOCHS, seed=seed)
        return asked, fit_node

    def test_cancelled_midway_goes_on_in_the_next_run(self, server, prompt):
        asked, node = self.wish(prompt, seed=11)

        def cancel(kind, data):
            if kind == "progress" and data["node"] == node and data["value"] == 5:
                server.read("/interrupt", {})

        cancelled = server.run(asked, cancel)
        assert cancelled.end == "execution_interrupted"
        reached = cancelled.steps(node, self.EPOCHS)[-1]
        assert 5 <= reached < self.EPOCHS

        done = server.run(asked)
        assert done.end == "execution_success"
        steps = done.steps(node, self.EPOCHS)
        assert steps[0] > 1 and steps[-1] == self.EPOCHS

    def test_killed_midway_goes_on_after_a_restart_and_is_kept(self, server, prompt):
        asked, node = self.wish(prompt, seed=12)

        def cut_power(kind, data):
            if kind == "progress" and data["node"] == node and data["value"] == 10:
                server.kill()

        assert server.run(asked, cut_power).end == ""
        server.start()
        done = server.run(asked)
        steps = done.steps(node, self.EPOCHS)
        assert done.end == "execution_success" and steps[0] > 1 and steps[-1] == self.EPOCHS
        (save,) = nodes_of(asked, "SaveImage")
        (first,) = server.pictures(done, save)

        server.kill()
        server.start()
        again = server.run(asked)
        assert again.end == "execution_success" and not again.steps(node, self.EPOCHS)  # from the disk
        (second,) = server.pictures(again, save)
        assert_close([second], read_images(first)[0].rgb)
