"""What the training code reads of a folder of pictures: what its manifest names, and nothing that is held out."""

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "training"))

from manifest import HELD_OUT, read_manifest, training_photos, training_pictures  # noqa: E402
from tiny_teachers import picture_set  # noqa: E402


def test_held_out_photos_are_for_no_training_wherever_files_lie(tmp_path):
    kept = HELD_OUT["photos"][-1]
    files = [
        (kept, "content", "photo"),
        ("coco/2.webp", "content", "photo"),
        ("coco/1.webp", "content", "photo"),
        ("wikiart/ink/1.webp", "style", "ink"),
        ("eval/3.webp", "eval", "photo"),
    ]
    picture_set(tmp_path, files)
    assert [row["file"] for row in read_manifest(tmp_path)] == [file for file, *_ in files]
    assert [row["label"] for row in read_manifest(tmp_path, "style", "eval")] == ["ink", "photo"]
    assert training_photos(tmp_path) == ["coco/1.webp", "coco/2.webp"]
    read = [file.relative_to(tmp_path).as_posix() for file in training_pictures(tmp_path)]
    assert read == ["coco/1.webp", "coco/2.webp", "wikiart/ink/1.webp"]


def test_wordings_are_the_same_in_every_process():
    """Python hashes strings anew in each."""
    code = (
        "from style_wordings import wordings\n"
        "captions = ['a print by Hiroshige', 'a wave by Hokusai', 'an actor by Sharaku', 'rain of Kawase']\n"
        "print(wordings('ukiyo-e', captions))"
    )
    folder = Path(__file__).parent.parent / "training"
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3", "4")
    }
    assert len(said) == 1 and "Sharaku" in said.pop()
