"""Which label does a picture look like?  A judge whose network takes no part in training.

    python benchmarks/style_judge.py DATA --alexnet FILE          # how well it knows the artworks themselves

DATA has a manifest.jsonl with a line {"file", "kind": "style", "label", ...} for each artwork.  FILE is the ImageNet-
trained, shift-tolerant AlexNet of the PyPI package stlpips-pytorch, `weights/vST0.0/alex_shift_tolerant.pth` in its
wheel.  It is an evaluation tool for whoever fetches it: nothing of that package is shipped or imported here, the
forward below is written from the shapes in the file.

A picture is what the mean and the standard deviation of each channel say, at five layers, of its central square at
256 px.

The distance was chosen by leaving one artwork out, before any stylized picture was looked at: 3163 artworks of the 230
labels that have more than one, each placed among all 252 labels (chance: 0.004 and 0.020):

| distance to a label | top-1 | top-5 |
| --- | ---: | ---: |
| centre, L2, standardised / logarithms | 0.367 / 0.377 | 0.575 / 0.598 |
| centre, whitened by the covariance within labels, ridge 0.3: standardised / roots / logarithms | 0.509 / 0.539 / 0.546 | 0.704 / 0.723 / 0.733 |
| the same with logarithms, ridge 0.1 / 1 / 3 | 0.559 / **0.521** / 0.503 | 0.735 / **0.727** / 0.713 |

Taken: logarithms, and the strongest ridge within one standard error (0.008) of the best top-5, since pictures that are not
artworks lie off the axes that a weak ridge blows up. Averaged over labels instead of artworks it has 0.396 and 0.591: a
label with few artworks is recognised less often, so a share of 1.0 is out of reach for anybody.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from stylemamba.pipeline.atomic_write import atomic_write
from stylemamba.pipeline.images import read_images
from stylemamba.pipeline.losses import mean_std
from stylemamba.pipeline.perceptual import lpips_head

SIDE = 256  # of the square that is judged
CONVOLUTIONS = ("net.slice1.0", "net.slice2.5", "net.slice3.9", "net.slice4.11", "net.slice5.13")
BLURS = ("net.slice1.1", "net.slice2.4", "net.slice3.8")
FLOOR = 0.01  # added to a statistic before its logarithm
RIDGE = 1.0  # share of the mean variance that is added to the covariance within labels
PRIOR = 1  # artworks at the mean of all that each label has besides its own


class AlexFeatures:
    """The five ReLU layers of the AlexNet, and LPIPS by the heads that came with it."""

    def __init__(self, weights: dict[str, Tensor], name: str) -> None:
        wanted = [f"{conv}.{part}" for conv in CONVOLUTIONS for part in ("weight", "bias")]
        wanted += [f"{blur}.filt" for blur in BLURS] + [f"lin{i}.model.1.weight" for i in range(5)]
        wanted += ["scaling_layer.shift", "scaling_layer.scale"]
        missing = [key for key in wanted if key not in weights]
        if missing:
            raise ValueError(
                f"the AlexNet weights lack {', '.join(missing[:3])}; give stlpips-pytorch's alex_shift_tolerant.pth"
            )
        self.weights, self.name = {key: weights[key].float() for key in wanted}, name

    @classmethod
    def from_file(cls, path: Path) -> "AlexFeatures":
        if not path.is_file():
            raise FileNotFoundError(
                f"no AlexNet at {path}; it is weights/vST0.0/alex_shift_tolerant.pth in the wheel of stlpips-pytorch"
            )
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        return cls(
            torch.load(path, map_location="cpu", weights_only=True), f"alexnet-shift-tolerant@{digest}"
        )

    @property
    def widths(self) -> list[int]:
        return [len(self.weights[f"{conv}.bias"]) for conv in CONVOLUTIONS]

    def _blur(self, x: Tensor, layer: str) -> Tensor:
        """Low-pass before every second pixel is taken: what makes the network blind to shifts."""
        kernel = self.weights[f"{layer}.filt"]
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [0, 1] -> five maps."""
        w = self.weights
        x = ((images.float() * 2 - 1) - w["scaling_layer.shift"]) / w["scaling_layer.scale"]
        maps = []
        for index, conv in enumerate(CONVOLUTIONS):
            if index in (1, 2):
                x = self._blur(F.max_pool2d(x, 3, stride=1), BLURS[index])
            kernel = w[f"{conv}.weight"]
            x = F.conv2d(x, kernel, w[f"{conv}.bias"], padding=1 if index > 1 else 2)
            x = F.relu(self._blur(x, BLURS[0]) if index == 0 else x)
            maps.append(x)
        return maps

    @property
    def heads(self) -> list[Tensor]:
        """Of LPIPS, one weight for each channel of each layer."""
        return [self.weights[f"lin{i}.model.1.weight"].flatten() for i in range(len(CONVOLUTIONS))]

    def lpips(self, a: Tensor, b: Tensor) -> Tensor:
        """LPIPS distance of two batches in [0, 1], averaged over the batch."""
        return lpips_head(self(a), self(b), self.heads)


def channel_statistics(layers: Sequence[Tensor]) -> Tensor:
    """Maps (B, C, H, W) -> (B, D): for each layer the means of its channels, then their standard deviations."""
    return torch.cat([part for layer in layers for part in mean_std(layer)], dim=1)


def style_distance(a: Tensor, b: Tensor, widths: Sequence[int]) -> Tensor:
    """`losses.mean_std_loss` of every row of `channel_statistics` in `a` (A, D) to every row in `b` (B, D) -> (A, B).

    widths: channels of each layer.
    """
    weight = torch.cat([torch.full((2 * width,), 1 / width) for width in widths])
    return ((a[:, None] - b).square() * weight).sum(-1)


def square(picture) -> Tensor:
    """A picture in any form -> (1, 3, 256, 256): short side to 256 px, then the centre."""
    if not isinstance(picture, Image.Image):
        pixels = read_images(picture)[0].rgb[0].permute(1, 2, 0)
        picture = Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().numpy())
    scale = SIDE / min(picture.size)
    width, height = (max(SIDE, round(side * scale)) for side in picture.size)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    small = picture.convert("RGB").resize((width, height), Image.LANCZOS)
    return read_images(small.crop((left, top, left + SIDE, top + SIDE)))[0].rgb


@dataclass
class Artworks:
    """The artworks that the labels are known by: `statistics` (N, D), and for each its file and label."""

    statistics: Tensor
    files: list[str]
    labels: list[str]

    @classmethod
    def read(cls, data: Path, alexnet: AlexFeatures, cache: Path) -> "Artworks":
        """Takes the statistics once and keeps them in `cache`, under the hashes of manifest and weights."""
        manifest = data / "manifest.jsonl"
        if not manifest.is_file():
            raise FileNotFoundError(f"no {manifest}; give a folder whose manifest.jsonl names its artworks")
        rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if row["kind"] == "style"]
        digest = hashlib.sha256(manifest.read_bytes()).hexdigest()[:12]
        kept = cache / f"artworks-{digest}-{alexnet.name}-{SIDE}.safetensors"
        if kept.is_file():
            statistics = load_file(kept)["statistics"]
        else:
            pictures = (Image.open(data / row["file"]) for row in rows)
            statistics = torch.cat([channel_statistics(alexnet(square(picture))) for picture in pictures])
            with atomic_write(kept) as part:
                save_file({"statistics": statistics}, part)
        return cls(statistics, [row["file"] for row in rows], [row["label"] for row in rows])


class StyleJudge:
    """Knows each label by its artworks.  `names` are the labels, sorted."""

    def __init__(self, artworks: Artworks) -> None:
        self.names = sorted(set(artworks.labels))
        numbers = {name: number for number, name in enumerate(self.names)}
        self.label = torch.tensor([numbers[label] for label in artworks.labels])  # (N,)
        self.count = torch.bincount(self.label)  # (L,)
        logs = _logs(artworks.statistics)
        self.mean, self.std = logs.mean(0), logs.std(0).clamp(min=1e-8)
        points = (logs - self.mean) / self.std  # (N, D), around 0
        self.sums = torch.zeros(len(self.names), points.shape[1]).double().index_add(0, self.label, points)
        self.offsets = points - (self.sums / self.count[:, None])[self.label]
        freedom = max(len(points) - len(self.names), 1)
        covariance = self.offsets.T @ self.offsets / freedom
        covariance += RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance)).double()
        # Where the artworks of one label differ a lot from each other, a difference says little of the style.
        self.whiten = torch.linalg.inv(torch.linalg.cholesky(covariance)).T  # (D, D)
        self.freedom, self.points = freedom, points

    def distances(self, statistics: Tensor) -> Tensor:
        """(B, D) -> (B, L), squared distances to the labels."""
        points = ((_logs(statistics) - self.mean) / self.std) @ self.whiten
        centres = (self.sums / (self.count + PRIOR)[:, None]) @ self.whiten
        return torch.cdist(points, centres).square()

    def ranks(self, statistics: Tensor, labels: Sequence[str]) -> Tensor:
        """How many labels are nearer than the one asked for, for each picture: 0 is the first place."""
        unknown = sorted(set(labels) - set(self.names))
        if unknown:
            raise ValueError(f"got labels {unknown}; wanted some of the {len(self.names)} of the artworks")
        asked = torch.tensor([self.names.index(label) for label in labels])
        return _places(self.distances(statistics), asked)

    def leave_one_out(self) -> Tensor:
        """The rank of each artwork's own label when that artwork is not known to the judge (except to the scale of
        the axes); -1 for the only artwork of its label.

        Exact, without fitting N judges: to leave one out is a change of rank 1 of the covariance (Sherman-Morrison).
        """
        count = self.count[self.label].double()  # (N,)
        points, offsets = self.points @ self.whiten, self.offsets @ self.whiten
        centres = (self.sums / (self.count + PRIOR)[:, None]) @ self.whiten
        rest = (self.sums[self.label] - self.points) / (count - 1 + PRIOR).clamp(min=1)[:, None]
        own = points - rest @ self.whiten  # to the label without this artwork
        change = count / (count - 1).clamp(min=1) / self.freedom
        change = change / (1 - change * offsets.square().sum(1))
        along = (points * offsets).sum(1)[:, None] - offsets @ centres.T  # (N, L)
        distances = torch.cdist(points, centres).square() + change[:, None] * along.square()
        mine = own.square().sum(1) + change * (own * offsets).sum(1).square()
        distances[torch.arange(len(points)), self.label] = mine
        return torch.where(count > 1, _places(distances, self.label), -1)


def _logs(statistics: Tensor) -> Tensor:
    """In float64: in float32 the inverse is too coarse, and leaving one out seemed to reach 0.92."""
    return (statistics.double() + FLOOR).log()


def _places(distances: Tensor, asked: Tensor) -> Tensor:
    return (distances < distances.gather(1, asked[:, None])).sum(1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--alexnet", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/judge"))
    args = parser.parse_args()
    judge = StyleJudge(Artworks.read(args.data, AlexFeatures.from_file(args.alexnet), args.cache))
    ranks = judge.leave_one_out()
    known = ranks >= 0
    print(f"{int(known.sum())} artworks of {int((judge.count > 1).sum())} labels that have more than one,")
    print(f"each left out and placed among {len(judge.names)} labels:")
    print(f"top-1 {(ranks[known] < 1).double().mean():.3f}, top-5 {(ranks[known] < 5).double().mean():.3f}\n")
    print("| label | artworks | top-1 | top-5 |\n| --- | ---: | ---: | ---: |")
    for number, name in enumerate(judge.names):
        found = ranks[known & (judge.label == number)]
        if len(found):
            rates = [f"{(found < k).double().mean():.2f}" for k in (1, 5)]
            print(f"| {name} | {len(found)} | {rates[0]} | {rates[1]} |")


if __name__ == "__main__":
    main()
