"""The whole recipe of the bundled model, part by part, at tiny size and on a GPU that is pretended; and how it shares its time."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "training"))

import sharpen_stylizer  # noqa: E402
import train_perceptual  # noqa: E402
import train_tiny  # noqa: E402
from pretended_gpu import PretendedGPU  # noqa: E402
from teach_pairs import HELD_OUT  # noqa: E402
from tiny_teachers import picture_set, sentence_encoder, shift_tolerant_vgg16  # noqa: E402
from train_tiny import Part, minutes_of, parts  # noqa: E402

from stylemamba import SaMamPipeline, StyleMambaPipeline  # noqa: E402

FILES = [
    *((photo, "eval", "photo") for photo in HELD_OUT["photos"][:3]),
    ("eval/painting.webp", "eval", "neon"),
    *((f"content/{i}.webp", "content", "photo") for i in range(3)),
    *((f"style/{label}/{i}.webp", "style", label) for label in ("mosaic", "neon") for i in range(2)),
]


def test_every_part_runs_on_the_device_that_was_asked_for_and_the_model_stylizes(tmp_path, monkeypatch):
    data, runs = tmp_path / "data", tmp_path / "runs"
    picture_set(data, FILES)
    vgg = shift_tolerant_vgg16(tmp_path / "vgg.pth")
    monkeypatch.setattr(train_perceptual, "CHANNELS", (8,) * 5)
    monkeypatch.setattr(train_perceptual, "HEAD_CROPS", 3)
    monkeypatch.setattr(sharpen_stylizer, "READING_STEPS", 2)
    recipe = parts(data, runs, vgg, sentence_encoder(tmp_path / "minilm"), amount=1e-3, seed=0)
    tiny = runs / "sharpened" / "pipeline"
    of_relative = [
        data,
        runs / "pairs",
        runs / "samam",
        "--model",
        "samam",
        "--tiny",
        tiny,
        "--vgg",
        vgg,
        "--losses-from",
        0,
    ]
    for part in [*recipe, Part("train_image_guided.py", [*map(str, of_relative), "--batch", "1"], 1)]:
        arguments = [*part.arguments, *(["--device", "cuda"] if part.on_device else [])]
        arguments += ["--minutes", "0.01"] if part.weight else []
        monkeypatch.setattr(sys, "argv", [part.script, *arguments])
        with PretendedGPU():
            importlib.import_module(Path(part.script).stem).main()
    pipe = StyleMambaPipeline.from_pretrained(tiny)
    assert pipe.style_memory.styles.shape[0] == 2  # labels
    photo = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    one, other = (pipe(photo, prompt, output_type="pt").images for prompt in ("mosaic", "neon"))
    assert one.shape == photo.shape and not torch.equal(one, other)
    painting = Image.open(data / "eval" / "painting.webp")
    assert (
        SaMamPipeline.from_pretrained(runs / "samam" / "pipeline")(photo, painting, output_type="pt")
        .images.isfinite()
        .all()
    )


def test_parts_share_the_minutes_that_are_left():
    todo = [Part("a", [], 3), Part("b", []), Part("c", [], 1)]
    assert minutes_of(todo[0], todo, 40) == 30
    assert minutes_of(todo[2], todo[1:], 12) == 12  # what the others left to the last
    assert minutes_of(todo[0], todo, -5) == 0


@pytest.fixture
def recorded(monkeypatch, tmp_path):
    """What would be run, without running it; each takes six seconds, and the fourth fails once."""
    commands, failed, now = [], [], [0.0]

    def run(command, check):
        now[0] += 6
        if Path(command[1]).name == "train_perceptual.py" and not failed:
            failed.append(command)
            raise KeyboardInterrupt
        commands.append(command)

    monkeypatch.setattr(train_tiny.subprocess, "run", run)
    monkeypatch.setattr(train_tiny.time, "monotonic", lambda: now[0])
    arguments = [
        str(tmp_path / "data"),
        str(tmp_path / "runs"),
        "--vgg",
        "vgg.pth",
        "--sentence-encoder",
        "minilm",
    ]
    monkeypatch.setattr(sys, "argv", ["train_tiny.py", *arguments, "--minutes", "47.2", "--device", "cpu"])
    return commands, failed


def test_a_stopped_recipe_goes_on_with_the_part_and_the_minutes_it_had(recorded, tmp_path):
    commands, failed = recorded
    with pytest.raises(KeyboardInterrupt):
        train_tiny.main()
    assert len(commands) == 3
    train_tiny.main()
    scripts = [Path(command[1]).name for command in commands]
    assert scripts == [part.script for part in parts(*[tmp_path] * 4, 1, 0)]
    again = next(command for command in commands if "train_perceptual.py" in command[1])
    assert again == failed[0]
    minutes = {Path(c[1]).name: float(c[c.index("--minutes") + 1]) for c in commands if "--minutes" in c}
    # 47.2 minutes less the two parts without training, of 25 + 12 + 15 + 3 + 120 + 60 shares
    assert minutes["train_autoencoder.py"] == pytest.approx(47 * 25 / 235)
    # the last gets what is left when all others have run, one of them twice: ten parts of a tenth of a minute
    assert minutes["sharpen_stylizer.py"] == pytest.approx(47.2 - 0.9, abs=2e-3)
    ledger = json.loads((tmp_path / "runs" / "train_tiny.json").read_text(encoding="utf-8"))
    assert ledger["seconds"] == 60 and len(ledger["done"]) == 9
