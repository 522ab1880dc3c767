"""The whole recipe of the bundled model, part by part, at tiny size and on a GPU that is pretended; and how it shares its time."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "training"))

import sharpen_stylizer  # noqa: E402
import train_perceptual  # noqa: E402
import train_tiny  # noqa: E402
from manifest import HELD_OUT  # noqa: E402
from pretended_gpu import PretendedGPU, on_gpu  # noqa: E402
from teacher_vgg import _LargestOfFour  # noqa: E402
from timed_run import TimedRun  # noqa: E402
from tiny_teachers import picture_set, sentence_encoder, shift_tolerant_vgg16  # noqa: E402
from train_tiny import Ledger, Part, minutes_of, parts  # noqa: E402

from stylemamba import SaMamPipeline, StyleMambaPipeline  # noqa: E402

FILES = [
    *((photo, "eval", "photo") for photo in HELD_OUT["photos"][:3]),
    ("eval/painting.webp", "eval", "neon"),
    *((f"content/{i}.webp", "content", "photo") for i in range(3)),
    *((f"style/{label}/{i}.webp", "style", label) for label in ("mosaic", "neon") for i in range(2)),
]


def test_every_part_trains_on_the_device_that_was_asked_for_and_the_models_stylize(tmp_path, monkeypatch):
    data, runs = tmp_path / "data", tmp_path / "runs"
    picture_set(data, FILES)
    vgg = shift_tolerant_vgg16(tmp_path / "vgg.pth")
    monkeypatch.setattr(train_perceptual, "CHANNELS", (8,) * 5)
    monkeypatch.setattr(train_perceptual, "HEAD_CROPS", 3)
    monkeypatch.setattr(sharpen_stylizer, "READING_STEPS", 2)
    monkeypatch.setattr(sharpen_stylizer, "READING_CROPS", 2)
    recipe = parts(data, runs, vgg, sentence_encoder(tmp_path / "minilm"), amount=1e-3, seed=0)
    tiny, samam = runs / "sharpened" / "pipeline", runs / "samam"
    paths = [data, runs / "pairs", samam, "--tiny", tiny, "--vgg", vgg]
    options = [
        "--model",
        "samam",
        "--batch",
        "1",
        "--losses-from",
        "0",
        "--steps",
        "9",
    ]  # the ninth has all losses
    recipe.append(Part("train_image_guided.py", [*map(str, paths), *options]))
    for part in recipe:
        arguments = [*part.arguments, *(["--device", "cuda"] if part.on_device else [])]
        arguments += ["--minutes", "0.01"] if part.weight else []
        arguments += (
            ["--sharpen-from", "-1"] if part.script == "train_stylizer.py" else []
        )  # all losses at once
        monkeypatch.setattr(sys, "argv", [part.script, *arguments])
        with PretendedGPU():
            module = importlib.import_module(Path(part.script).stem)
            runs_of_part = watched(module, monkeypatch)
            module.main()
        if part.script.startswith(("train", "sharpen")):
            ((run, was_on_gpu),) = runs_of_part
            assert run.step > 0 and was_on_gpu, part.script
    pipe = StyleMambaPipeline.from_pretrained(tiny)
    assert pipe.style_memory.styles.shape[0] == 2  # labels
    photo = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    one, other = (pipe(photo, prompt, output_type="pt").images for prompt in ("mosaic", "neon"))
    assert one.shape == photo.shape and not torch.equal(one, other)
    relative, painting = (
        SaMamPipeline.from_pretrained(samam / "pipeline"),
        Image.open(data / "eval" / "painting.webp"),
    )
    assert relative(photo, painting, output_type="pt").images.isfinite().all()


def watched(module, monkeypatch) -> list[tuple[TimedRun, bool]]:
    """The runs that a training will have begun, and whether on the GPU."""
    began = []

    class Watched(TimedRun):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            began.append((self, on_gpu(self.optimizer.param_groups[0]["params"][0])))

    if hasattr(module, "TimedRun"):
        monkeypatch.setattr(module, "TimedRun", Watched)
    return began


def test_the_gradient_of_the_teachers_pool_stays_on_the_gpu(monkeypatch):
    # Where torch itself calls backward, a GPU is not pretended.
    x = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    grad = torch.rand(1, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    (wanted,) = torch.autograd.grad(F.max_pool2d(x, 2, stride=1), x, grad)
    with PretendedGPU():
        kept = SimpleNamespace(
            needs_input_grad=[True],
            save_for_backward=lambda *masks: kept.__dict__.update(saved_tensors=masks),
        )
        pooled = _LargestOfFour.forward(kept, x.detach().to("cuda"))
        found = _LargestOfFour.backward(kept, grad.to("cuda"))
        assert on_gpu(pooled) and on_gpu(found)
    torch.testing.assert_close(pooled, F.max_pool2d(x.detach(), 2, stride=1))
    torch.testing.assert_close(found, wanted)


def test_parts_share_the_minutes_that_are_left():
    todo = [Part("a", [], 3), Part("b", []), Part("c", [], 1)]
    assert minutes_of(todo[0], todo, 40) == 30
    assert minutes_of(todo[2], todo[1:], 12) == 12  # what the others left to the last
    with pytest.raises(SystemExit, match="no time is left for c: give 5"):
        minutes_of(todo[2], todo[1:], -5)


@pytest.fixture
def scripts(monkeypatch, tmp_path):
    """Nine real scripts that note their arguments; the perceptual one fails while there is no file `go`."""
    folder, log = tmp_path / "scripts", tmp_path / "log"
    folder.mkdir()
    for part in parts(*[tmp_path] * 4, 1, 0):
        fails = part.script == "train_perceptual.py"
        (folder / part.script).write_text(
            f"import sys, pathlib\nopen({str(log)!r}, 'a').write(' '.join(sys.argv) + '\\n')\n"
            f"sys.exit(3 if {fails} and not pathlib.Path({str(tmp_path / 'go')!r}).exists() else 0)\n",
            encoding="utf-8",
        )
    monkeypatch.setattr(train_tiny, "HERE", folder)
    monkeypatch.setattr(train_tiny.signal, "signal", lambda *_: None)  # pytest's own stays
    given = [tmp_path / "data", tmp_path / "runs", "--vgg", "vgg.pth", "--sentence-encoder", "minilm"]
    monkeypatch.setattr(
        sys, "argv", ["train_tiny.py", *map(str, given), "--minutes", "235", "--device", "cpu"]
    )
    return log


def test_a_stopped_recipe_goes_on_with_the_part_and_the_minutes_it_had(scripts, tmp_path):
    with pytest.raises(SystemExit, match="train_perceptual.py ended with 3"):
        train_tiny.main()
    first = scripts.read_text(encoding="utf-8").splitlines()
    ledger = json.loads((tmp_path / "runs" / "train_tiny.json").read_text(encoding="utf-8"))
    assert (
        ledger["done"] == ["teach_pairs.py", "finish_pairs.py", "train_autoencoder.py"]
        and ledger["seconds"] > 0
    )
    (tmp_path / "go").touch()
    train_tiny.main()
    lines = scripts.read_text(encoding="utf-8").splitlines()
    assert lines[:4] == first and lines[4] == first[3]  # with what it was given before
    ran = [Path(line.split()[0]).name for line in lines[:3] + lines[4:]]
    assert ran == [part.script for part in parts(*[tmp_path] * 4, 1, 0)]
    minutes = {
        Path(line.split()[0]).name: line.split("--minutes ")[1] for line in lines if "--minutes" in line
    }
    # Of 25 + 12 + 15 + 3 + 120 + 60 shares; these scripts take a few seconds, and the last gets all that is left.
    assert float(minutes["train_autoencoder.py"]) == pytest.approx(25, abs=0.1)
    assert 234 < float(minutes["sharpen_stylizer.py"]) < 235


def test_the_time_that_a_part_takes_is_written_down_while_it_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(train_tiny, "SAVE_EVERY", 0.05)
    ledger, seen = Ledger(tmp_path / "train_tiny.json"), tmp_path / "seen"
    script = "import shutil, sys, time; time.sleep(0.5); shutil.copy(*sys.argv[1:])"
    ledger.run([sys.executable, "-c", script, str(ledger.file), str(seen)])
    assert 0.2 < json.loads(seen.read_text(encoding="utf-8"))["seconds"] < ledger.seconds
