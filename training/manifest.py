"""What a folder of pictures says of them: `manifest.jsonl`, one JSON object a line (README.md here says what one needs).

Photos and captions of `held_out.json` are for evaluations: no training reads them.
"""

import json
from pathlib import Path

HELD_OUT = json.loads(Path(__file__).with_name("held_out.json").read_text(encoding="utf-8"))


def read_manifest(data: Path, *kinds: str) -> list[dict]:
    """Its rows; of some kinds, if any are named: `content`, `style`, `eval`."""
    lines = (data / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    return [row for row in rows if row["kind"] in kinds] if kinds else rows


def training_photos(data: Path) -> list[str]:
    return sorted({row["file"] for row in read_manifest(data, "content")} - set(HELD_OUT["photos"]))


def training_pictures(data: Path) -> list[Path]:
    """Photos and artworks."""
    artworks = sorted({row["file"] for row in read_manifest(data, "style")})
    return [data / file for file in (*training_photos(data), *artworks)]
