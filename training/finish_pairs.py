"""Finishes the teacher's pictures: each label's in the way that makes them look most like its artworks.

    python training/finish_pairs.py DATA PAIRS -o FINISHED --vgg VGG16

The teacher leaves the photo's fine detail and a canvas of its own everywhere, also where the artworks are flat or soft
(ice, flames, watercolours), and its colours lie closer together than theirs. Eight ways to finish are tried on a few pictures of
each label: as they are, flattened, flattened more, or softened, each with its own colours or those of the artwork. A VGG16
says for each which of all labels' artworks they are nearest to, by the rule of benchmarks/style_judge.py, whose
own network stays unseen. FINISHED is like PAIRS, and every line says how it was finished.
"""

import argparse
import itertools
import json
import random
import shutil
import sys
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from pictures import read_unit
from PIL import Image
from timed_run import add_device_options
from torch import Tensor
from train_stylizer import STYLE_SIDE, numbers_of, see

from stylemamba.pipeline.controls import blur
from stylemamba.pipeline.images import to_pil

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from style_judge import Artworks, StyleJudge

VIEW = 2 / 3  # of a picture, when it is compared with artworks of 256 px: its short side is 256 as a rule
KNOTS = 33  # of a map from the values of one histogram to those of another
WAYS = tuple(itertools.product(("plain", "flat", "flatter", "soft"), ("own", "artwork")))  # surface, colours
STEEPEST = 5  # the map stretches differences at most so much, or noise in a plain sky would become texture


def flatten(image: Tensor, contrast: float) -> Tensor:
    """Evens out what differs by less than `contrast`, keeps edges: bilateral filters along rows and columns, (1, 3, H, W)."""
    for step in (1, 2, 3, 1, 2, 3):
        for dim in (2, 3):
            total, weights = torch.zeros_like(image), torch.zeros_like(image[:, :1])
            border = [0, 0, 2 * step, 2 * step] if dim == 2 else [2 * step, 2 * step, 0, 0]
            around = F.pad(image, border, mode="replicate")
            for shift in range(0, 5 * step, step):
                near = around.narrow(dim, shift, image.shape[dim])
                weight = torch.exp((near - image).square().sum(1, keepdim=True) / (-2 * contrast**2))
                total.addcmul_(weight, near)
                weights += weight
            image = total / weights
    return image


def in_histogram(image: Tensor, artwork: Tensor) -> Tensor:
    """`image` (1, 3, H, W) with the quantiles of `artwork` in every channel, but for slopes above `STEEPEST`."""
    at = torch.linspace(0, 1, KNOTS)
    middle, channels = KNOTS // 2, []
    for values, wanted in zip(image[0], artwork[0], strict=True):
        here, there = values.flatten().quantile(at), wanted.flatten().quantile(at)
        rise = torch.minimum(there.diff(), STEEPEST * here.diff()).cumsum(0)
        heights = torch.cat([torch.zeros(1), rise])
        heights += there[middle] - heights[middle]
        right = torch.searchsorted(here, values.contiguous()).clamp(1, KNOTS - 1)
        share = (values - here[right - 1]) / (here[right] - here[right - 1]).clamp(min=1e-6)
        channels.append(torch.lerp(heights[right - 1], heights[right], share.clamp(0, 1)))
    return torch.stack(channels)[None].clamp(0, 1)


def surface(picture: Tensor, kind: str) -> Tensor:
    spread = min(picture.std().item(), 0.25)  # in a pale picture, small differences are all there is
    match kind:
        case "plain":
            return picture
        case "flat":
            return flatten(picture, 0.4 * spread)
        case "flatter":
            return flatten(flatten(picture, 0.4 * spread), 0.8 * spread)
        case "soft":
            return blur(picture, 2.0)


def finish(picture: Tensor, artwork: Tensor, way: tuple[str, str]) -> Tensor:
    """Pictures (1, 3, H, W) in [0, 1] -> the first, with a surface and colours."""
    kind, colours = way
    finished = surface(picture, kind)
    return in_histogram(finished, artwork) if colours == "artwork" else finished


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--vgg", type=Path, required=True, help="weights of a VGG16, see README.md")
    parser.add_argument("--tries", type=int, default=3, help="pictures that decide for a label")
    add_device_options(parser)
    args = parser.parse_args()

    rows = [
        json.loads(line) for line in (args.pairs / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    maps_of = see(args.vgg, 4, args.device, args.bfloat16)

    @torch.no_grad()
    def seen(pictures: Tensor) -> Tensor:
        return numbers_of(maps_of(pictures.to(args.device))).cpu()

    labels = {row["artwork"]: row["label"] for row in rows}
    known = torch.cat([seen(read_unit(args.data / art, STYLE_SIDE)) for art in labels])
    judge = StyleJudge(Artworks(known, list(labels), list(labels.values())))

    typical = defaultdict(list)
    for row in rows:
        if row["stands_for_label"]:
            typical[row["label"]].append(row)
    chosen = {}
    for label, of_label in sorted(typical.items()):
        places = dict.fromkeys(WAYS, 0.0)
        for row in random.Random(f"0 {label}").sample(of_label, min(args.tries, len(of_label))):
            picture = whole(args.pairs / row["file"])
            artwork = read_unit(args.data / row["artwork"], STYLE_SIDE)
            tried = torch.cat([finish(picture, artwork, way) for way in WAYS])
            views = F.interpolate(tried, scale_factor=VIEW, mode="bilinear", antialias=True)
            for way, rank in zip(WAYS, judge.ranks(seen(views), [label] * len(WAYS)), strict=True):
                places[way] += rank.double().log1p().item()
        chosen[label] = min(places, key=places.get)
        print(f"{label}: {' '.join(chosen[label])}", flush=True)

    args.out.mkdir(parents=True, exist_ok=True)
    listing = args.out / "pairs.jsonl"
    done = len(listing.read_text(encoding="utf-8").splitlines()) if listing.exists() else 0
    for row in rows[done:]:
        way = chosen[row["label"]]
        if way == ("plain", "own"):
            shutil.copy(args.pairs / row["file"], args.out / row["file"])
        else:
            artwork = read_unit(args.data / row["artwork"], STYLE_SIDE)
            picture = finish(whole(args.pairs / row["file"]), artwork, way)
            to_pil(picture).save(args.out / row["file"], quality=95, subsampling=0)
        with listing.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row | {"finish": way}) + "\n")


def whole(file: Path) -> Tensor:
    with Image.open(file) as image:
        return read_unit(file, min(image.size))


if __name__ == "__main__":
    main()
