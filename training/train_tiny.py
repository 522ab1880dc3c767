"""Makes the bundled model `tiny` from pictures and captions: all parts of README.md, one after the other, in the time that there is.

    python training/train_tiny.py DATA RUNS --vgg VGG16 --sentence-encoder MINILM --minutes 240

What needs no training comes first, the teacher's pictures; the trainings share the rest of the time. The last of them begins with
what takes no share, statistics of all artworks, so that the whole takes some minutes more. Started again it goes on in the part
where it was stopped. The model is RUNS/sharpened/pipeline in the end.
"""

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from timed_run import add_device_options

from stylemamba.pipeline.atomic_write import atomic_write

HERE = Path(__file__).parent
SAVE_EVERY = 20  # seconds


@dataclass
class Part:
    """A script with its arguments; `weight`: its share of the time, 0 if it takes what it takes."""

    script: str
    arguments: list[str]
    weight: float = 0
    on_device: bool = True


@dataclass
class Ledger:
    """Which parts are done, the minutes that each was given, and the seconds that all took; kept in a file."""

    file: Path
    done: list[str] = field(default_factory=list)
    minutes: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @classmethod
    def open(cls, file: Path) -> "Ledger":
        return cls(file, **json.loads(file.read_text(encoding="utf-8"))) if file.exists() else cls(file)

    def save(self) -> None:
        kept = {"done": self.done, "minutes": self.minutes, "seconds": self.seconds}
        with atomic_write(self.file) as part:
            part.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")

    def run(self, command: list[str]) -> None:
        """Waits for a command, and writes down the time that it takes while it takes it: nobody says when the power fails."""
        begin, before = time.monotonic(), self.seconds
        with subprocess.Popen(command) as process:
            try:
                while process.poll() is None:
                    self.save()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(SAVE_EVERY)
                    self.seconds = before + time.monotonic() - begin
            finally:
                process.terminate()
                self.save()
        if process.returncode:
            raise SystemExit(
                f"{Path(command[1]).name} ended with {process.returncode}; the same command goes on from here."
            )


def parts(data: Path, runs: Path, vgg: Path, sentence_encoder: Path, amount: float, seed: int) -> list[Part]:
    """amount: of what is made beforehand for training, 1 as for the shipped weights."""

    def some(count: int) -> str:
        return str(max(1, round(amount * count)))

    vae, perceptual, text, tower = runs / "vae", runs / "perceptual", runs / "text", runs / "image_encoder"
    pairs, finished, stylizer, taught = (runs / name for name in ("pairs", "finished", "stylizer", "taught"))
    of_vgg, of_seed = ["--vgg", vgg], ["--seed", seed]
    few = ["--photos", some(10), "--others", some(3), "--photos-of-others", some(3)]
    texts = ["--styles", some(50000), "--sentences", some(20000), "--space-styles", some(6000)]
    made = [
        Part("teach_pairs.py", [data, "-o", pairs, *few], on_device=False),
        Part("finish_pairs.py", [data, pairs, "-o", finished, *of_vgg]),
        Part("train_autoencoder.py", [data, vae, *of_seed], 25),
        Part("train_perceptual.py", [data, perceptual, *of_vgg, *of_seed], 12),
        Part("train_text_tower.py", [data, text, "--sentence-encoder", sentence_encoder, *texts, *of_seed], 15),
        Part("train_image_encoder.py", [data, tower, "--text", text / "tower", "--perceptual", perceptual, *of_seed], 3),
        Part(
            "train_stylizer.py",
            [data, finished, stylizer, "--vae", vae, "--text", text / "tower", "--image-encoder", tower, *of_vgg, *of_seed],
            120,
        ),
        Part("build_tiny.py", [runs, "-o", taught], on_device=False),
        Part("sharpen_stylizer.py", [data, taught, runs / "sharpened", *of_vgg, *of_seed], 60),
    ]  # fmt: skip
    for part in made:
        part.arguments = [str(argument) for argument in part.arguments]
    return made


def minutes_of(part: Part, todo: list[Part], left: float) -> float:
    """Its share of the minutes left, among the parts still to do."""
    if left <= 0:
        raise SystemExit(
            f"no time is left for {part.script}: give {-left:.0f} --minutes more, and those it shall train."
        )
    return left * part.weight / sum(other.weight for other in todo)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--vgg", type=Path, required=True, help="weights of a VGG16, see README.md")
    parser.add_argument("--sentence-encoder", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument(
        "--minutes", type=float, default=240, help="of all parts and all runs together, about"
    )
    parser.add_argument(
        "--amount", type=float, default=1.0, help="of pairs and texts to train with; less for a try"
    )
    parser.add_argument("--seed", type=int, default=0)
    add_device_options(parser)
    args = parser.parse_args()

    # As Ctrl-C, so that the part that runs ends, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; the same command goes on from here."))
    ledger = Ledger.open(args.runs / "train_tiny.json")
    recipe = parts(args.data, args.runs, args.vgg, args.sentence_encoder, args.amount, args.seed)
    todo = [part for part in recipe if part.script not in ledger.done]
    while todo:
        part, command = todo[0], [sys.executable, str(HERE / todo[0].script), *todo[0].arguments]
        if part.on_device:
            command += ["--device", str(args.device), *(["--bfloat16"] if args.bfloat16 else [])]
        if part.weight:
            # One that was stopped keeps what it was given: its rate falls towards that time.
            if part.script not in ledger.minutes:
                left = args.minutes - ledger.seconds / 60
                ledger.minutes[part.script] = minutes_of(part, todo, left)
            command += ["--minutes", f"{ledger.minutes[part.script]:.3f}"]
        print(" ".join(command), flush=True)
        ledger.run(command)
        ledger.done.append(todo.pop(0).script)
        ledger.save()
    print(f"{args.runs / 'sharpened' / 'pipeline'} after {ledger.seconds / 60:.1f} minutes")


if __name__ == "__main__":
    main()
