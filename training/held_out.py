"""What no training sees, so that an evaluation on it means something: writes held_out.json.

    python training/held_out.py DATA

Photos: the evaluation's own (`kind` eval, `role` content) and 40 others drawn by a seed. Captions: one, drawn by the same
seed, of each label that has three or more, so that its style stays named by the rest. The prompts of the benchmark
(benchmarks/prompts.json) are held out as well; they are no captions and stay in their own file.
"""

import argparse
import json
import random
from pathlib import Path

from manifest import read_manifest

SEED = 0
PHOTOS = 40
FILE = Path(__file__).with_name("held_out.json")


def hold_out(rows: list[dict]) -> dict[str, list[str]]:
    """Rows of a manifest -> {"photos": files, "captions": texts}; does not depend on the order of the rows."""
    rng = random.Random(SEED)
    evaluation = sorted(r["file"] for r in rows if r["kind"] == "eval" and r["role"] == "content")
    photos = sorted(r["file"] for r in rows if r["kind"] == "content")
    captions = {r["label"]: r["captions"] for r in rows if r["kind"] == "style"}
    drawn = sorted(rng.sample(photos, min(PHOTOS, len(photos))))
    texts = {rng.choice(captions[label]) for label in sorted(captions) if len(captions[label]) >= 3}
    return {"photos": evaluation + drawn, "captions": sorted(texts)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    args = parser.parse_args()
    FILE.write_text(json.dumps(hold_out(read_manifest(args.data)), indent=1) + "\n")


if __name__ == "__main__":
    main()
