"""The command `stylemamba`: what each command does, its exit codes, and what it leaves behind when it fails."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SiglipConfig, SiglipModel
from typer.testing import CliRunner

from stylemamba import MambaSTPipeline, PromptFitConfig, SaMamPipeline, Style, StyleMambaPipeline
from stylemamba.pipeline.command_line import fit as fit_command
from stylemamba.pipeline.command_line.app import app
from stylemamba.pipeline.command_line.styles import sparkline
from stylemamba.pipeline.images import read_images, to_pil
from stylemamba.pipeline.lut import apply_lut
from stylemamba.pipeline.presets import preset
from stylemamba.pipeline.selective_scan import scan_backends
from stylemamba.weights import named_styles, thumbnail_of

COMMANDS = [
    [], ["stylize"], ["fit"], ["styles"], ["styles", "list"], ["styles", "show"], ["styles", "sheet"],
    ["styles", "rename"], ["styles", "verify"], ["styles", "blend"], ["score"],
    ["bench"], ["doctor"], ["demo"],
]  # fmt: skip


def a_photo(size: tuple[int, int] = (40, 48)) -> Image.Image:
    x, y = torch.meshgrid(*(torch.linspace(0, 1, side) for side in size), indexing="xy")
    return to_pil(torch.stack([x, y, ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1).float()])[None] * 0.9 + 0.05)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, components, taesd, samam, mamba_st) -> Path:
    """A model, a SigLIP checkpoint, two styles, and an installation with a bundled model in the layout of `weights`."""
    shelf = tmp_path_factory.mktemp("shelf")
    pipe = StyleMambaPipeline(**components())
    pipe.save_pretrained(shelf / "model")
    text, image = pipe.text_encoder.config, pipe.image_encoder.config
    SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=image.to_dict())).save_pretrained(
        shelf / "siglip"
    )
    pipe.tokenizer.save_pretrained(shelf / "siglip")
    for name, prompt in (("glass", "stained glass"), ("neon", "neon city")):
        config = PromptFitConfig(epochs=2, train="fusion", preset="fast")
        pipe.fit_style(a_photo(), prompt, config=config).save(shelf / f"{name}.safetensors")

    samam(reads_prompts=True).save_pretrained(shelf / "samam")
    mamba_st().save_pretrained(shelf / "mamba-st")

    parts = components(vae=taesd, text_encoder=None, tokenizer=None, image_encoder=None, perceptual=None)
    StyleMambaPipeline(**parts).save_pretrained(shelf / "weights" / "starter")
    (shelf / "weights" / "photos").mkdir()
    for name, size in (("hills", (64, 40)), ("cat", (32, 32))):
        a_photo(size).save(shelf / "weights" / "photos" / f"{name}.webp")
    os.symlink(shelf / "model", shelf / "weights" / "tiny")
    (shelf / "weights" / "registry.json").write_text(
        '{"models": {"starter": {"folder": "starter"}, "tiny": {"folder": "tiny"}}}'
    )
    return shelf


@pytest.fixture
def here(shelf, tmp_path, monkeypatch) -> Path:
    """The current folder: `photo.png`, and the shelf beside it as `model`, `siglip`, `glass.safetensors` ..."""
    monkeypatch.chdir(tmp_path)
    for thing in shelf.iterdir():
        os.symlink(thing, tmp_path / thing.name)
    a_photo().save("photo.png")
    return tmp_path


@pytest.fixture
def bundled(shelf, monkeypatch) -> None:
    monkeypatch.setattr("stylemamba.weights._HERE", shelf / "weights")


@pytest.fixture
def not_bundled(tmp_path, monkeypatch) -> None:
    (tmp_path / "registry.json").write_text('{"models": {}}')
    monkeypatch.setattr("stylemamba.weights._HERE", tmp_path)


def run(*arguments: object, code: int = 0) -> str:
    """What the command says; it has to end with `code`, and to fail without a traceback."""
    result = CliRunner(env={"COLUMNS": "300"}).invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    if code == 1:
        assert result.output.splitlines()[-1].startswith("Error: ") or "could not be" in result.output
    return result.output


def process(*arguments: str) -> list[str]:
    start = "from stylemamba.pipeline.command_line.app import main; main()"
    return [sys.executable, "-c", start, *arguments]


def files(folder: Path = Path()) -> set[str]:
    """Files in it, hidden and half ones too, without what the shelf brought."""
    return {path.name for path in folder.iterdir() if not path.is_symlink()} - {"photo.png", "registry.json"}


# Help


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_examples_that_exist(command):
    text = run(*command, "--help")
    examples = text.split("Examples:")[1].split("╭")[0]
    assert " ".join(["stylemamba", *command]) in examples
    shown = set(re.findall(r" (--[a-z-]+)", examples))
    for name in {" ".join(words) for words in COMMANDS[1:]}:
        used = [
            line for line in re.sub(r"\\\s*\n", "", examples).splitlines() if f"stylemamba {name} " in line
        ]
        if used and name != "styles":
            known = run(*name.split(), "--help")
            assert all(option in known for line in used for option in shown if option in line)


def test_the_examples_that_share_a_file_work_together(here):
    examples = run("--help").split("Examples:")[1].split("╭")[0]
    fit, stylize = (shlex.split(line)[1:] for line in examples.splitlines() if "ink.safetensors" in line)
    Path("photos").mkdir()
    for name in ("photo.jpg", "photos/photo.png"):
        a_photo().save(name)
    run(*fit, "--model", "model", "--epochs", 1)
    run(*stylize, "--model", "model")
    assert files(Path("out"))


def test_help_needs_neither_torch_nor_diffusers():
    script = (
        "import sys\nfrom stylemamba.pipeline.command_line.app import app\n"
        "app(['stylize', '--help'], standalone_mode=False)\n"
        "assert not {'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


def test_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", run("--version"))


# stylize


def test_stylize_with_a_prompt(here):
    a_photo((33, 21)).convert("RGBA").save("small.png")
    assert (
        run("stylize", "small.png", "Ink drawing, bold!", "--model", "model")
        == "small-ink-drawing-bold.png\n"
    )
    result = Image.open("small-ink-drawing-bold.png")
    assert (result.size, result.mode) == ((33, 21), "RGBA")
    assert files() == {"small.png", "small-ink-drawing-bold.png"}


def test_stylize_equals_the_pipeline(here):
    run("stylize", "photo.png", "--style", "glass.safetensors", "--weight", 0.7, "--style", "neon.safetensors",
        "--weight", 0.3, "--strength", 0.8, "--structure", 0.2, "--stroke-scale", 1.5, "--preserve-color",
        "--model", "model", "-o", "out.png")  # fmt: skip
    pipe = StyleMambaPipeline.from_pretrained("model")
    for name in ("glass", "neon"):
        pipe.load_style(f"{name}.safetensors")
    pipe.set_styles(["glass", "neon"], [0.7, 0.3])
    expected = pipe(a_photo(), strength=0.8, structure=0.2, stroke_scale=1.5, preserve_color=True).images[0]
    assert np.array_equal(Image.open("out.png"), expected)


def test_stylize_many_into_a_folder(here):
    Path("in").mkdir()
    for name in ("a.png", "a.jpg", "b.webp"):
        a_photo().save(Path("in", name))
    said = run("stylize", "in", "mosaic", "neon city", "--model", "model", "-o", "out/new")
    names = {f"{stem}-{style}.png" for stem in ("a", "a", "b") for style in ("mosaic", "neon-city")}
    names |= {"a-mosaic-2.png", "a-neon-city-2.png"}  # a.jpg and a.png
    assert {Path(line).name for line in said.splitlines()} == files(Path("out/new")) == names


def test_stylize_mask_and_style_image(here):
    mask = Image.new("L", (40, 48), 0)
    mask.paste(255, (0, 0, 20, 48))
    mask.save("mask.png")
    a_photo((30, 30)).save("painting.png")
    run(
        "stylize",
        "photo.png",
        "--style-image",
        "painting.png",
        "--mask",
        "mask.png",
        "--model",
        "model",
        "-o",
        "out/",
    )
    before, after = np.asarray(a_photo()), np.asarray(Image.open("out/photo-painting.png"))
    assert np.array_equal(before[:, 20:], after[:, 20:])
    assert not np.array_equal(before[:, :20], after[:, :20])


def test_a_folder_does_not_hide_the_style_of_its_name(here):
    Path("mosaic").mkdir()
    for _ in range(2):
        run("stylize", "photo.png", "--style", "mosaic", "--model", "model", "-o", "mosaic/", "--overwrite")
    expected = StyleMambaPipeline.from_pretrained("model")(a_photo(), named_styles()["mosaic"]).images[0]
    assert np.array_equal(Image.open("mosaic/photo-mosaic.png"), expected)
    assert named_styles()["mosaic"] in run("styles", "show", "mosaic")


def test_a_mask_of_16_bits_is_as_soft_as_it_was_painted(here):
    ramp = np.tile(np.linspace(0, 65535, 40).astype(np.uint16), (48, 1))
    Image.fromarray(ramp).save("mask.png")
    run("stylize", "photo.png", "stained glass", "--mask", "mask.png", "--model", "model", "-o", "out.png")
    pipe = StyleMambaPipeline.from_pretrained("model")
    wanted = pipe(a_photo(), "stained glass", mask_image=torch.from_numpy(ramp / 65535)).images[0]
    assert np.array_equal(Image.open("out.png"), wanted)


def test_stylize_in_the_style_of_pictures(here):
    for name, size in (("one", (64, 80)), ("two", (70, 64))):
        a_photo(size).rotate(90).save(f"{name}.png")
    pictures = ["--style-image", "one.png", "--weight", 3, "--style-image", "two.png", "--weight", 1]
    settings = ["--strength", 0.8, "--structure", 0.2, "--stroke-scale", 1.5, "--preserve-color"]
    run("stylize", "photo.png", *pictures, *settings, "--model", "samam", "-o", "out/")
    pipe = SaMamPipeline.from_pretrained("samam")
    mixture = [(Image.open("one.png"), 3), (Image.open("two.png"), 1)]
    wanted = pipe(a_photo(), mixture, strength=0.8, structure=0.2, stroke_scale=1.5, preserve_color=True)
    assert np.array_equal(Image.open("out/photo-one-two.png"), wanted.images[0])

    pictures = ["--style-image", "one.png", "--shuffles", 2]
    run("stylize", "photo.png", *pictures, "--seed", 5, "--model", "mamba-st", "-o", "five.png")
    run("stylize", "photo.png", *pictures, "--model", "mamba-st", "-o", "zero.png")
    pipe, generator = MambaSTPipeline.from_pretrained("mamba-st"), torch.Generator().manual_seed(5)
    wanted = pipe(a_photo(), Image.open("one.png"), shuffles=2, generator=generator).images[0]
    assert np.array_equal(Image.open("five.png"), wanted)
    assert not np.array_equal(Image.open("zero.png"), wanted)


def test_stylize_by_samam_with_prompts(here):
    prompts = ["stained glass", "--style", "mosaic", "--model", "samam"]
    assert run("stylize", "photo.png", *prompts) == "photo-stained-glass.png\nphoto-mosaic.png\n"
    run("stylize", "photo.png", *prompts, "--weight", 1, "--weight", 3)
    pipe = SaMamPipeline.from_pretrained("samam")
    for name, prompt in (
        ("stained-glass", "stained glass"),
        ("mosaic", named_styles()["mosaic"]),
        ("stained-glass-mosaic", [("stained glass", 1), (named_styles()["mosaic"], 3)]),
    ):
        assert np.array_equal(Image.open(f"photo-{name}.png"), pipe(a_photo(), prompt=prompt).images[0])


def test_stylize_by_a_short_name(here):
    for name in ("samam", "mamba-st"):
        Path(name).unlink()  # a folder of that name would be meant
    a_photo((64, 64)).save("one.png")
    for name in ("samam", "samam-tiny"):
        run("stylize", "photo.png", "--style-image", "one.png", "--model", name, "-o", f"{name}.png")
    assert np.array_equal(Image.open("samam.png"), Image.open("samam-tiny.png"))
    assert not np.array_equal(Image.open("samam.png"), Image.open("photo.png"))


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--model", "samam"], 2, "wanted a PROMPT, a --style, a --style-image"),
        (["ink", "--model", "mamba-st"], 1, "reads no prompt: give pictures with --style-image"),
        (["ink", "--style-image", "other.png", "--model", "samam"], 2, "or a PROMPT if it reads any; got both"),
        (["--style", "glass.safetensors", "--model", "samam"], 2, "has no use for a fitted style"),
        (["--style-image", "other.png", "--tile", "512", "--model", "samam"], 2, "has no use for --tile"),
        (["--style-image", "other.png", "--mix", "slerp", "--model", "samam"], 2, "has no use for --mix slerp"),
        (["--region", "other.png=mosaic", "--model", "samam"], 2, "has no use for --region"),
        (["--style-image", "other.png", "--vae", "model", "--model", "samam"], 2, "has no use for --vae"),
        (["--style-image", "other.png", "--weight", "1", "--weight", "2", "--model", "samam"], 2, "got 1 style images and 2 weights"),
        (["--style-image", "other.png", "--weight", "0", "--model", "samam"], 1, "the weights of the style images are [0.0]"),
        (["--style-image", "other.png", "--shuffles", "1", "--model", "samam"], 1, "SaMamPipeline has no style tokens"),
        (["--style-image", "nosuch.png", "--model", "samam"], 1, "nosuch.png does not exist"),
        (["--style-image", "bad.png", "--model", "samam"], 1, "bad.png is no picture"),
        (["--style-image", "other.png", "--style-image", "photo.png", "--model", "model"], 2, "got 2 times --style-image"),
        (["ink", "--shuffles", "1", "--model", "model"], 2, "--shuffles and --seed belong to --model mamba-st"),
        (["ink", "--seed", "1", "--model", "model"], 2, "--shuffles and --seed belong to --model mamba-st"),
    ],
)  # fmt: skip
def test_stylize_bad_usage_of_image_guided_models(here, arguments, code, sentence):
    a_photo((64, 64)).save("other.png")
    Path("bad.png").write_bytes(b"no picture")
    before = files()
    assert sentence in " ".join(run("stylize", "photo.png", *arguments, code=code).split())
    assert files() == before


@pytest.mark.parametrize("command", [["fit", "ink", "photo.png", "-o", "ink.safetensors"], ["bench"]])
@pytest.mark.parametrize("model", ["samam", "samam-tiny"])
def test_image_guided_models_are_for_stylize_alone(here, command, model):
    said = " ".join(run(*command, "--model", model, code=2).split())
    assert f"--model {model} paints after pictures: use it with stylemamba stylize --style-image" in said


def test_no_video_by_image_guided_models(here):
    Path("clip.mp4").touch()
    a_photo((64, 64)).save("other.png")
    said = run("stylize", "clip.mp4", "--style-image", "other.png", "--model", "samam", code=2)
    assert "--model samam has no use for a video" in said


def test_stylize_goes_on_after_a_bad_picture(here):
    Path("in").mkdir()
    for name in ("a.png", "c.png"):
        a_photo().save(Path("in", name))
    Path("in", "b.png").write_bytes(b"no picture")
    a_photo((8, 8)).save("in/d.png")
    said = run("stylize", "in", "mosaic", "--model", "model", "-o", "out", code=1)
    assert files(Path("out")) == {"a-mosaic.png", "c-mosaic.png"}
    assert "in/b.png is no picture" in said
    assert "in/d.png: image is 8 x 8 px, wanted at least 16" in said
    assert "2 of 4 pictures could not be stylized" in said


def test_stylize_of_parts_needs_no_text_encoder_for_a_style(here):
    run("stylize", "photo.png", "--style", "glass.safetensors", "--model", "model", "-o", "whole.png")
    run("stylize", "photo.png", "--style", "glass.safetensors", "--vae", "model", "-o", "parts.png")
    assert np.array_equal(Image.open("whole.png"), Image.open("parts.png"))


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["photo.png"], 2, "wanted a PROMPT, a --style, a --style-image or a --region"),
        (["photo.png", "other.png"], 2, "other.png is a picture where a prompt was expected"),
        (["photo.png", "ink", "--strength", "7"], 2, "--strength"),
        (["photo.png", "ink", "--dtype", "float8"], 2, "wanted float32, float16 or bfloat16"),
        (["photo.png", "ink", "--device", "abacus"], 2, "--device abacus cannot be used"),
        (["photo.png", "ink", "--vae", "model"], 2, "add --text-encoder"),
        (["photo.png", "ink", "--vae", "model", "--model", "model"], 2, "not both"),
        (["photo.png", "ink", "--nonsense"], 2, "--nonsense"),
        (["photo.png", "--style", "glass.safetensors", "--weight", "1", "--weight", "2"], 2, "got 1 styles and 2 weights"),
        (["photo.png", "--style", "neon.safetensors", "--style", "neon.safetensors"], 2, "given twice"),
        (["photo.png", "a", "b", "-o", "out.png"], 2, "do not go into the one file out.png"),
        (["nothing.png", "ink"], 1, "nothing.png does not exist"),
        (["empty", "ink"], 1, "the folder empty holds no picture"),
        (["bad.png", "ink"], 1, "bad.png is no picture"),
        (["clip.mp4", "ink"], 1, "clip.mp4 cannot be read as a video"),
        (["photo.png", "ink", "-o", "out.gif"], 1, "'.gif', wanted one of .png"),
        (["photo.png", "ink", "-o", "photo.png", "--overwrite"], 1, "is one of the pictures to stylize"),
        (["photo.png", "ink", "-o", "other.png"], 1, "other.png exists already"),
        (["photo.png", "ink", "-o", "other.png/out.png"], 1, "other.png is a file, not a folder"),
        (["photo.png", "ink", "--mask", "bad.png"], 1, "bad.png is no picture"),
        (["photo.png", "ink", "--model", "nosuch"], 1, "no model 'nosuch'"),
        (["photo.png", "ink", "--model", "empty"], 1, "empty has no model_index.json"),
        (["photo.png", "ink"], 1, "no model is bundled"),
        (["photo.png", "ink", "--model", "weights/starter"], 1, "no text encoder, so it reads no prompt"),
        (["photo.png", "--style-image", "other.png", "--model", "weights/starter"], 1, "it sees no style picture"),
        (["photo.png", "ink", "--vae", "model", "--text-encoder", "siglip"], 1, "untrained and changes nothing"),
        (["photo.png", "--style", "nosuch.safetensors"], 1, "nosuch.safetensors is not a file"),
        (["photo.png", "--style", "bad.png"], 1, "bad.png is no whole safetensors file"),
        (["photo.png", "--style", "glass.safetensors", "--weight", "nan", "--model", "model"], 1, "finite numbers"),
    ],
)  # fmt: skip
def test_stylize_bad_usage(here, not_bundled, monkeypatch, arguments, code, sentence):
    def no_network(*_):
        raise AssertionError("no Hub id was named")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    a_photo().save("other.png")
    Path("empty").mkdir()
    Path("bad.png").write_bytes(b"no picture")
    Path("clip.mp4").touch()
    before = Path("photo.png").read_bytes(), files()
    model = (
        []
        if {"--model", "--vae"} & set(arguments) or sentence == "no model is bundled"
        else ["--model", "model"]
    )
    assert sentence in " ".join(run("stylize", *arguments, *model, code=code).split())
    assert (Path("photo.png").read_bytes(), files()) == before


def test_stylize_several_prompts_as_one(here):
    run(
        "stylize", "photo.png", "stained glass", "neon city", "--weight", 0.75, "--weight", 0.25, "--mix", "slerp",
        "--model", "model", "-o", "out.png",
    )  # fmt: skip
    pipe = StyleMambaPipeline.from_pretrained("model")
    expected = pipe(a_photo(), [("stained glass", 0.75), ("neon city", 0.25)], mix="slerp").images[0]
    assert np.array_equal(np.array(Image.open("out.png")), np.array(expected))
    run(
        "stylize",
        "photo.png",
        "neon city",
        "very long",
        "--weight",
        1,
        "--weight",
        0,
        "--model",
        "model",
        "-o",
        "one.png",
    )
    expected = pipe(a_photo(), "neon city").images[0]
    assert np.array_equal(np.array(Image.open("one.png")), np.array(expected))


def test_stylize_by_the_name_of_a_prompt(here):
    run("stylize", "photo.png", "--style", "mosaic", "--model", "model", "-o", "out.png")
    expected = StyleMambaPipeline.from_pretrained("model")(a_photo(), named_styles()["mosaic"]).images[0]
    assert np.array_equal(np.array(Image.open("out.png")), np.array(expected))


def test_stylize_with_a_preset_and_what_is_given_beside_it(here):
    run(
        "stylize", "photo.png", "stained glass", "--preset", "photo", "--strength", 0.9, "--preserve-palette", "--model",
        "model", "-o", "out.png",
    )  # fmt: skip
    pipe, settings = StyleMambaPipeline.from_pretrained("model"), {**preset("photo"), "strength": 0.9}
    expected = pipe(a_photo(), "stained glass", preserve_color="palette", **settings).images[0]
    assert np.array_equal(np.array(Image.open("out.png")), np.array(expected))


def test_stylize_regions(here):
    left, right = Image.new("L", (40, 48)), Image.new("L", (80, 96))
    left.paste(255, (0, 0, 15, 48))
    right.paste(255, (60, 0, 80, 96))
    left.save("left.png"), right.save("right.png")
    run(
        "stylize", "photo.png", "--region", "left.png=stained glass", "--region", "right.png=neon.safetensors", "--model",
        "model", "-o", "out.png",
    )  # fmt: skip
    before, out = np.array(Image.open("photo.png")), np.array(Image.open("out.png"))
    assert np.array_equal(out[:, 15:30], before[:, 15:30])
    for part in (slice(0, 15), slice(30, 40)):
        assert not np.array_equal(out[:, part], before[:, part])
    assert files() == {"left.png", "right.png", "out.png"}


def test_stylize_tone_only_writes_a_table(here):
    run(
        "stylize", "photo.png", "neon city", "--preset", "cinematic", "--cube", "tone.cube", "--model", "model", "-o",
        "out.png",
    )  # fmt: skip
    numbers = [line.split() for line in Path("tone.cube").read_text().splitlines() if line[0].isdigit()]
    table = (
        torch.tensor([[float(n) for n in line] for line in numbers]).view(33, 33, 33, 3).permute(3, 0, 1, 2)
    )
    toned = to_pil(apply_lut(read_images(a_photo())[0].rgb, table))
    difference = np.abs(np.array(toned).astype(int) - np.array(Image.open("out.png")).astype(int))
    assert difference.max() <= 1


def a_clip(path: str = "clip.mp4", count: int = 4) -> None:
    with av.open(path, "w") as out:
        video = out.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 40, 48, "yuv420p"
        for _ in range(count):
            out.mux(video.encode(av.VideoFrame.from_image(a_photo())))
        out.mux(video.encode(None))


def test_stylize_a_video(here):
    a_clip()
    run("stylize", "clip.mp4", "stained glass", "--model", "model", "-o", "out.mp4", "--tile", 192)
    with av.open("out.mp4") as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(frames) == 4 and frames[0].shape == (48, 40, 3)
    expected = np.array(StyleMambaPipeline.from_pretrained("model")(a_photo(), "stained glass").images[0])
    for frame in frames:
        away, changed = (np.abs(frame.mean(-1) - p.mean(-1)).mean() for p in (expected, np.array(a_photo())))
        assert away < changed / 4
    run("stylize", "clip.mp4", "--style", "glass.safetensors", "--model", "model")
    assert files() == {"clip.mp4", "out.mp4", "clip-glass.mp4"}
    run("stylize", "clip.mp4", "--style", "glass.safetensors", "--model", "model", "-o", "clips.v2/")
    assert Path("clips.v2", "clip-glass.mp4").is_file()


def test_ctrl_c_in_a_video_leaves_no_file(here, monkeypatch):
    a_clip()
    calls = []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(self, *args, **kwargs)

    whole = StyleMambaPipeline.__call__
    monkeypatch.setattr(StyleMambaPipeline, "__call__", interrupted)
    monkeypatch.setattr("stylemamba.pipeline.deflicker.torch.equal", lambda *_: False)  # paints every frame
    assert "Stopped" in run(
        "stylize", "clip.mp4", "stained glass", "--model", "model", "-o", "out.mp4", code=130
    )
    assert files() == {"clip.mp4"}


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["clip.mp4", "a", "b"], 2, "a video takes one style, got 2"),
        (["clip.mp4", "a", "-o", "out.png"], 2, "ends in '.png', wanted one of .mp4"),
        (["clip.mp4", "a", "-o", "clip.mp4"], 1, "clip.mp4 is the video to stylize"),
        (["clip.mp4", "a", "--mask", "photo.png"], 2, "belong to pictures"),
        (["broken.mp4", "a"], 1, "broken.mp4 cannot be read as a video"),
        (["photo.png", "a", "--mask", "black.png"], 1, "black.png is black everywhere"),
        (["photo.png", "--region", "black.png=a"], 1, "black.png is black everywhere"),
        (["photo.png", "--region", "none.png=a", "--model", "nowhere"], 1, "none.png"),  # before the model
        (["photo.png", "--region", "black.png"], 2, "is not MASK=STYLE"),
        (["photo.png", "a", "--region", "black.png=a"], 2, "leave PROMPT, --style and --mask out"),
        (["photo.png", "a", "--preset", "art"], 2, "preset is 'art', wanted one of photo, sketch"),
        (["photo.png", "a", "--mix", "round"], 2, "wanted linear or slerp"),
        (["photo.png", "a", "b", "--weight", "1", "--weight", "-1"], 2, "sum to 0"),
        (["photo.png", "a", "b", "--weight", "1"], 2, "wanted one --weight for each"),
        (["photo.png", "a", "--preserve-color", "--preserve-palette"], 2, "exclude each other"),
        (["photo.png", "a", "--cube", "photo.png"], 2, "wanted .cube"),
        (["photo.png", "a", "--cube", "there.cube"], 1, "there.cube exists already"),
        (["photo.png", "a", "b", "--cube", "tone.cube"], 2, "give one picture and one style"),
        (["photo.png", "--style", "mosaic", "--style", "glass.safetensors"], 2, "mix styles of one kind"),
        (["photo.png", "a", "--tile", "100"], 1, "tile is 100, wanted a multiple of 16"),
    ],
)  # fmt: skip
def test_applications_bad_usage(here, arguments, code, sentence):
    a_clip(count=1)
    Image.new("L", (40, 48)).save("black.png")
    Path("broken.mp4").write_bytes(b"no video")
    Path("there.cube").write_text("precious")
    before = files()
    assert sentence in run("stylize", *arguments, "--model", "model", code=code)
    assert files() == before and Path("there.cube").read_text() == "precious"


def test_overwrite(here):
    Path("out.png").write_bytes(b"old")
    run("stylize", "photo.png", "ink", "--model", "model", "-o", "out.png", "--overwrite")
    assert Image.open("out.png").size == (40, 48)


# fit


FIT = ["fit", "stained glass", "photo.png", "--model", "model", "--preset", "fast"]


def same(one: Style, other: Style) -> bool:
    pairs = [(one.fusion, other.fusion), (one.decoder, other.decoder)]
    equal = all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in pairs)
    return equal and one.info["losses"] == other.info["losses"] and one.prompt == other.prompt


def test_fit(here):
    said = run(
        *FIT,
        "--epochs",
        3,
        "--seed",
        5,
        "--source-prompt",
        "a photo",
        "--preview",
        "look.jpg",
        "-o",
        "s.safetensors",
    )
    assert said.startswith("s.safetensors: 3 steps, style loss ")
    assert files() == {"s.safetensors", "look.jpg"}
    assert Image.open("look.jpg").size == (40, 48)
    config = PromptFitConfig(epochs=3, preset="fast", source_prompt="a photo")
    pipe = StyleMambaPipeline.from_pretrained("model")
    expected = pipe.fit_style(
        a_photo(), "stained glass", config=config, generator=torch.Generator().manual_seed(5)
    )
    assert same(Style.load("s.safetensors"), expected)


def test_fit_takes_the_preset_that_suits_the_model(here):
    options = ("fit", "ink", "photo.png", "--model", "model", "--epochs", 1, "--train", "fusion")
    run(*options, "-o", "auto.safetensors")
    run(*options, "-o", "sharp.safetensors", "--preset", "sharpen")
    presets = [Style.load(f"{name}.safetensors").info["config"]["preset"] for name in ("auto", "sharp")]
    assert presets == [StyleMambaPipeline.from_pretrained("model").fit_preset, "sharpen"]


def test_fit_on_a_video_holds_its_frames_calm(here):
    a_clip(count=5)
    options = ("--epochs", 1, "--train", "fusion", "--model", "model")
    run("fit", "stained glass", "clip.mp4", "-o", "film.safetensors", "--key-frames", 2, *options)
    info = Style.load("film.safetensors").info
    assert info["config"]["temporal_weight"] == 1000 and len(info["losses"]["temporal"]) == 1
    run("fit", "stained glass", "photo.png", "-o", "still.safetensors", *options)
    assert "temporal" not in Style.load("still.safetensors").info["losses"]
    assert "fit on one video" in run(
        "fit", "a", "clip.mp4", "photo.png", "-o", "x.safetensors", *options, code=2
    )
    Path("clip.mp4").write_bytes(b"no video")
    assert "cannot be read as a video" in run("fit", "a", "clip.mp4", "-o", "x.safetensors", *options, code=1)


def test_fit_of_parts_with_the_bundled_autoencoder_and_a_vgg(here, bundled):
    run(
        "fit",
        "mosaic",
        "photo.png",
        "photo.png",
        "--text-encoder",
        "siglip",
        "--epochs",
        1,
        "-o",
        "s.safetensors",
    )
    assert "AutoencoderTiny" in run("styles", "show", "s.safetensors")
    run("stylize", "photo.png", "--style", "s.safetensors", "--vae", "starter", "--text-encoder", "siglip")
    state = {
        f"features.{i}.{part}": value
        for i, (o, c) in enumerate(VGG16)
        for part, value in vgg_layer(o, c).items()
    }
    torch.save(state, "vgg.pth")
    run(*FIT, "--epochs", 1, "--vgg", "vgg.pth", "-o", "v.safetensors")
    assert "vgg" in run("styles", "show", "v.safetensors")


VGG16 = [
    (4, 3),
    (4, 4),
    (4, 4),
    (4, 4),
    (8, 4),
    (8, 8),
    (8, 8),
    (8, 8),
    (8, 8),
    (8, 8),
    (8, 8),
    (8, 8),
    (8, 8),
]


def vgg_layer(outputs: int, inputs: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((outputs, inputs, 3, 3), 0.02), "bias": torch.zeros(outputs)}


def test_ctrl_c_keeps_the_fit_and_the_same_command_goes_on(here):
    fit = [*FIT, "--train", "fusion", "--epochs", "40"]
    # Sums come out the same to the bit only on as many threads, and these tests run on one.
    child = subprocess.Popen(
        process(*fit, "--preview", "look.png", "-o", "s.safetensors"),
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while not Path("look.png").exists():  # the first epoch is done
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    said = child.communicate(timeout=60)[1]
    assert child.returncode == 130, said
    assert said.splitlines() == ["Stopped; the same command goes on from s.safetensors.part."]
    assert files() == {"s.safetensors.part", "look.png"}

    assert "Going on from s.safetensors.part." in run(*fit, "-o", "s.safetensors")
    run(*fit, "-o", "whole.safetensors")
    assert files() == {"s.safetensors", "look.png", "whole.safetensors"}
    assert same(Style.load("s.safetensors"), Style.load("whole.safetensors"))


def test_the_second_ctrl_c_stops_at_once(here, monkeypatch):
    def interrupt_twice(image, path):
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    fit = [*FIT, "--epochs", 3, "--checkpoint", "kept", "-o", "s.safetensors"]
    with monkeypatch.context() as patch:
        patch.setattr(fit_command, "write_picture", interrupt_twice)
        assert "goes on from kept" in run(*fit, "--preview", "look.png", code=130)
    assert signal.getsignal(signal.SIGINT) is handler
    assert files() == {"kept"}
    run(*fit)
    assert files() == {"s.safetensors"}


def test_ctrl_c_elsewhere(here, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(StyleMambaPipeline, "__call__", interrupt)
    assert run("stylize", "photo.png", "ink", "--model", "model", code=130) == "Stopped.\n"
    monkeypatch.setattr("safetensors.torch.save_file", interrupt)
    monkeypatch.setattr("stylemamba.pipeline.style.save_file", interrupt)
    run(*FIT, "--epochs", 1, "-o", "s.safetensors", code=130)
    assert files() == {"s.safetensors.part"}


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["ink"], 2, "Missing argument 'IMAGE"),
        (["ink", "photo.png"], 2, "Missing option '-o'"),
        (["ink", "photo.png", "-o", "s.pt"], 2, "ends in '.pt', wanted a name that ends in .safetensors"),
        (["ink", "photo.png", "-o", "s.safetensors", "--preset", "best"], 2, "wanted one of paper, quality, fast"),
        (["ink", "photo.png", "-o", "s.safetensors", "--train", "all"], 2, "wanted one of fusion+decoder"),
        (["ink", "photo.png", "-o", "s.safetensors", "--epochs", "0"], 2, "epochs is 0"),
        (["ink", "photo.png", "-o", "s.safetensors", "--checkpoint", "s.safetensors"], 2, "name the same file"),
        (["ink", "nothing.png", "-o", "s.safetensors"], 1, "nothing.png does not exist"),
        (["ink", "bad.png", "-o", "s.safetensors"], 1, "bad.png is no picture"),
        (["ink", "photo.png", "-o", "glass.safetensors"], 1, "glass.safetensors exists already"),
        (["ink", "photo.png", "-o", "bad.png/s.safetensors"], 1, "bad.png is a file, not a folder"),
        (["ink", "photo.png", "-o", "s.safetensors", "--preview", "p.gif"], 1, "'.gif'"),
        (["ink", "photo.png", "-o", "s.safetensors", "--preview", "photo.png"], 1, "one of the pictures to fit on"),
        (["ink", "photo.png", "-o", "s.safetensors", "--checkpoint", "bad.png"], 1, "bad.png is no readable fit checkpoint"),
        (["ink", "photo.png", "-o", "s.safetensors", "--vgg", "nosuch.pth"], 1, "no VGG weights at nosuch.pth"),
        (["ink", "photo.png", "-o", "s.safetensors", "--model", "weights/starter"], 1, "give a SigLIP checkpoint"),
    ],
)  # fmt: skip
def test_fit_bad_usage(here, arguments, code, sentence):
    Path("bad.png").write_bytes(b"no picture")
    model = [] if "--model" in arguments else ["--model", "model"]
    assert sentence in " ".join(run("fit", *arguments, *model, code=code).split())
    assert files() == {"bad.png"}


def test_a_fit_that_learns_nothing_writes_no_style(here, monkeypatch):
    def not_finite(self):
        raise FloatingPointError("loss nan")

    monkeypatch.setattr("stylemamba.pipeline.prompt_fit.PromptFit.step", not_finite)
    assert "nothing was learnt" in run(*FIT, "-o", "s.safetensors", code=1)
    assert files() == set()


# styles


def test_styles_list(here):
    Path("folder").mkdir()
    for name in ("glass", "neon"):
        Path("folder", f"{name}.safetensors").write_bytes(Path(f"{name}.safetensors").read_bytes())
    Path("folder/broken.safetensors").write_bytes(b"nothing")
    said = run("styles", "list", "folder")
    assert all(
        word in said for word in ("stained glass", "neon city", "AutoencoderKL", "Skipped: folder/broken")
    )
    Path("empty").mkdir()
    assert run("styles", "list", "empty") == "No style file in empty.\n"
    assert "nosuch is not a folder" in run("styles", "list", "nosuch", code=1)
    said = run("styles", "list")
    assert all(name in said and prompt in said for name, prompt in named_styles().items())


def test_styles_show(here):
    said = run("styles", "show", "glass.safetensors", "--thumbnail", "t.jpg")
    assert all(
        word in said
        for word in ("stained glass", "a plain photo", "AutoencoderKL", "epochs 2", "total", "█▁")
    )
    assert Image.open("t.jpg").size == (40, 48)
    assert "t.jpg exists already" in run(
        "styles", "show", "glass.safetensors", "--thumbnail", "t.jpg", code=1
    )
    assert "photo.png is no whole safetensors" in run("styles", "show", "photo.png", code=1)
    assert run("styles", "show", "mosaic", "--thumbnail", "m.png").splitlines() == [
        f"mosaic: {named_styles()['mosaic']}",
        "m.png",
    ]


def test_a_prompt_cannot_command_the_terminal(here):
    style = Style.load("glass.safetensors")
    style.info["prompt"] = "\x1b[2Jgone [red]not a tag[/red]"
    style.save("evil.safetensors")
    said = run("styles", "show", "evil.safetensors")
    assert "\x1b" not in said
    assert "[red]not a tag[/red]" in said


def test_styles_sheet(here):
    run("styles", "sheet", ".", "-o", "mine.png", "--columns", 2)
    assert Image.open("mine.png").width > 2 * 192
    assert "exists already" in run("styles", "sheet", ".", "-o", "mine.png", code=1)
    run("styles", "sheet")  # the named styles
    assert Image.open("styles.jpg").width > 6 * 192
    Path("empty").mkdir()
    assert "no style with a thumbnail in empty" in run("styles", "sheet", "empty", "-o", "no.png", code=1)


def test_every_named_style_has_a_thumbnail():
    assert len(named_styles()) == 24 and len(set(named_styles().values())) == 24
    for name in named_styles():
        with Image.open(thumbnail_of(name)) as picture:
            assert picture.width >= 96
        assert thumbnail_of(name).stat().st_size < 16_000


def test_styles_rename_changes_the_title_and_nothing_else(here):
    Style.load("glass.safetensors").save("mine.safetensors")
    before = Style.load("mine.safetensors")
    assert "Blue cathedral" in run("styles", "rename", "mine.safetensors", " Blue cathedral ")
    after = Style.load("mine.safetensors")
    assert after.info == {**before.info, "title": "Blue cathedral"}
    assert all(torch.equal(value, before.fusion[name]) for name, value in after.fusion.items())
    assert "Blue cathedral" in run("styles", "list", ".")
    assert "TITLE is empty" in run("styles", "rename", "mine.safetensors", " ", code=2)


def test_styles_verify(here):
    assert run("styles", "verify", "glass.safetensors", "neon.safetensors").count("whole") == 2
    assert "whole" in run("styles", "verify", "glass.safetensors", "--model", "model")
    Path("broken.safetensors").write_bytes(Path("glass.safetensors").read_bytes()[:1000])
    text = run("styles", "verify", "broken.safetensors", "glass.safetensors", code=1)
    assert "broken.safetensors is no whole safetensors file" in text and "glass.safetensors: whole" in text


def test_styles_blend(here):
    options = ["--weight", 0.7, "--weight", 0.3, "--strength", 0.9]
    run(
        "styles",
        "blend",
        "photo.png",
        "glass.safetensors",
        "neon.safetensors",
        *options,
        "--model",
        "model",
        "-o",
        "b.png",
    )
    run("stylize", "photo.png", "--style", "glass.safetensors", "--style", "neon.safetensors", *options, "--model", "model",
        "-o", "s.png")  # fmt: skip
    assert Path("b.png").read_bytes() == Path("s.png").read_bytes()
    wrong = run("styles", "blend", "photo.png", "glass.safetensors", "--weight", 1, "--weight", 2, code=2)
    assert "got 1 styles and 2 weights" in wrong
    both = ["glass.safetensors", "neon.safetensors", "--weight", 1, "--weight", -1]
    assert "sum to 0" in run("styles", "blend", "photo.png", *both, code=2)


def test_styles_blend_of_named_styles_by_slerp(here):
    options = ["--weight", 0.7, "--weight", 0.3, "--mix", "slerp", "--model", "model", "-o", "b.png"]
    run("styles", "blend", "photo.png", "mosaic", "neon", *options)
    mixture = [(named_styles()["mosaic"], 0.7), (named_styles()["neon"], 0.3)]
    expected = StyleMambaPipeline.from_pretrained("model")(a_photo(), mixture, mix="slerp").images[0]
    assert np.array_equal(Image.open("b.png"), expected)


def test_sparkline():
    assert sparkline([3.0, 2.0, 1.0]) == "█▅▁"
    assert sparkline([1.0]) == "▁"
    assert len(sparkline(list(range(1000)))) == 32


# score


def test_score(here):
    a_photo().save("copy.png")
    said = run("score", "copy.png", "photo.png", "--json", "s.json")
    assert "ssim" in said
    report = json.loads(Path("s.json").read_text())
    assert report["scores"]["ssim"]["value"] == pytest.approx(1, abs=1e-3)
    assert report["scores"]["psnr"]["value"] is None  # infinite, which JSON cannot say
    said = run("score", "copy.png", "photo.png", "--prompt", "ink", "--text-encoder", "siglip")
    assert "siglip_cos" in said
    assert "siglip_prob" in said


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["photo.png"], 2, "Missing argument"),
        (["photo.png", "photo.png", "--prompt", "ink"], 2, "--prompt and --text-encoder together"),
        (["nothing.png", "photo.png"], 1, "nothing.png does not exist"),
        (["photo.png", "nothing.png"], 1, "nothing.png does not exist"),
        (["photo.png", "small.png"], 1, "wanted equal sizes"),
        (["photo.png", "model"], 2, "model is a folder, wanted the one picture that all were made of"),
        (["photo.png", "photo.png", "--json", "small.png"], 1, "small.png exists already"),
        (["photo.png", "photo.png", "--prompt", "ink", "--text-encoder", "nosuch"], 1, "no model 'nosuch'"),
        (["photo.png", "photo.png", "--prompt", "ink", "--text-encoder", "model/text_encoder"], 1, "holds no vision tower"),
    ],
)  # fmt: skip
def test_score_bad_usage(here, arguments, code, sentence):
    a_photo((20, 20)).save("small.png")
    assert sentence in " ".join(run("score", *arguments, code=code).split())


# demo and doctor


def test_demo(here, bundled):
    said = run("demo", "--device", "cpu").splitlines()
    assert "stylemamba stylize photo.jpg" in said[0]
    assert said[1] == "stylemamba-demo.jpg"
    sheet = np.asarray(Image.open("stylemamba-demo.jpg"))
    assert (
        sheet.shape[0] > 200 + 320 and sheet.shape[1] > 9 * 320
    )  # two photos, each as it is and after eight prompts
    assert (sheet[:36] < 100).any()  # captions
    run("demo")  # its own sheet may be replaced, a file that the user named may not
    run("demo", "-o", "mine.jpg")
    assert "exists already" in run("demo", "-o", "mine.jpg", code=1)
    run("demo", "-o", "mine.jpg", "--overwrite")


def test_demo_without_a_bundled_model(here, not_bundled):
    assert "not bundled" in run("demo", code=1)
    assert "'.gif'" in run("demo", "-o", "sheet.gif", code=1)


def test_bench_measures_every_step_and_every_scan_that_runs_here(here):
    output = run("bench", "--model", "model", "--size", 32, "--repeats", 1)
    rows = {
        cells[1]: cells[2] for line in output.splitlines() if len(cells := re.split(r"\s*│\s*", line)) > 3
    }
    steps = {"read the prompt", "encode", "fuse", "decode", "whole picture"}
    scans = {f"scan {name}" for name in ("ref", "torch", "numba") if scan_backends()[name]}
    assert steps | scans <= rows.keys()
    assert all(float(milliseconds) > 0 for milliseconds in rows.values())
    run("bench", "--repeats", 0, code=2)


def test_doctor(here, bundled, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(here / "cache"))
    said = run("doctor")
    for word in (
        "torch",
        "scan ref",
        "runs",
        "device cpu",
        "bundled model starter",
        "for --model tiny",
        "mamba_ssm",
        "Hub cache",
    ):
        assert word in said


def test_doctor_finds_models_in_the_hub_cache(here, monkeypatch):
    cache = here / "cache"
    for owner_name, config in (
        ("stabilityai--ae", {"_class_name": "AutoencoderKL"}),
        ("google--sig", {"model_type": "siglip"}),
    ):
        snapshot = cache / f"models--{owner_name}" / "snapshots" / "0123"
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text(json.dumps(config))
        (snapshot / "model.safetensors").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    said = run("doctor")
    assert re.search(r"stabilityai/ae .*for --vae", said)
    assert re.search(r"google/sig .*for --text-encoder", said)


def test_doctor_says_what_is_broken(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "einops", None)
    said = run("doctor", code=1)
    assert "einops cannot be imported" in said


# Errors


def test_exit_codes_and_streams_of_the_real_command(here):
    failed = subprocess.run(process("stylize", "nothing.png", "ink"), capture_output=True, text=True)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert (
        failed.stderr == "Error: nothing.png does not exist: give a picture, a folder or a quoted pattern.\n"
    )
    misused = subprocess.run(process("stylize", "photo.png"), capture_output=True, text=True)
    assert (misused.returncode, misused.stdout) == (2, "")
    shown = subprocess.run(
        process("stylize", "nothing.png", "ink", "--debug"), capture_output=True, text=True
    )
    assert shown.returncode == 1
    assert "Traceback" in shown.stderr
    done = subprocess.run(
        process("stylize", "photo.png", "ink", "--model", "model"), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "photo-ink.png\n", "")


def test_an_unforeseen_error_is_a_sentence_too(here, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("odd\n  thing")

    monkeypatch.setattr(StyleMambaPipeline, "__call__", fail)
    said = run("stylize", "photo.png", "ink", "--model", "model", code=1)
    assert said == "Error: RuntimeError: odd thing (run again with --debug to see where)\n"


def test_a_failed_write_leaves_nothing(here, monkeypatch):
    def disk_full(self, path, **_):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Image.Image, "save", disk_full)
    assert "No space left on device" in run("stylize", "photo.png", "ink", "--model", "model", code=1)
    assert files() == set()
