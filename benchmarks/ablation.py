"""What the losses and the fuser of the paper do in a prompt-fit: its tables 3 and 6 and figure 5, on the bundled model.

    python benchmarks/ablation.py DATA --alexnet FILE -o runs/ablation

As in the paper each fit begins with a plain autoencoder and a fusion that is the identity: nothing amortised helps it. One
row at the end does begin with what `tiny` has learnt. DATA and FILE as for quality.py. A row is the mean over photos,
prompts and seeds:

    L_dir           what the fit minimises, 1 - directional cosine in the model's own image tower (lower is better)
    style           distance to artworks of the label in AlexNet statistics, which no fit saw (lower)
    judge top-5     share of pictures that the style judge, on AlexNet too, puts among the label's nearest five (higher)
    SSIM, LPIPS     against the photo: luminance; AlexNet
    ms a step       median

Figure 5 is a race on the same photos and towers against a CLIPstyler-style optimisation: a small U-Net from scratch for each
picture, directional loss of the whole and of random crops, content and variation.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from quality import HELD_OUT, photo_square
from style_judge import AlexFeatures, Artworks, StyleJudge, channel_statistics, square, style_distance
from torch import Tensor, nn

from stylemamba import PromptFitConfig, StyleFusion, StyleMambaPipeline
from stylemamba.pipeline import metrics
from stylemamba.pipeline.controls import luminance
from stylemamba.pipeline.crops import random_crops
from stylemamba.pipeline.images import Content
from stylemamba.pipeline.losses import (
    directional_cosine,
    directional_loss,
    patch_directional_loss,
    style_loss,
    total_loss,
    total_variation,
)
from stylemamba.pipeline.perceptual import PerceptualLoss
from stylemamba.pipeline.prompt_fit import PromptFit

# Prompt -> the label whose artworks it asks for.
PROMPTS = {
    "stained glass": "stained glass window",
    "bee hives": "honeycomb",
    "neon cyberpunk at night": "neon",
}
# Table 6: each row adds a term.
LOSSES = {
    "L_dir + VGG": (),
    "+ L_md": ("md",),
    "+ L_md + LPIPS": ("md", "lpips"),
    "+ L_md + LPIPS + L_so": ("md", "lpips", "so"),
}
# Table 3, and our other scans.
FUSERS = {
    "none, the decoder alone": None,
    "cross-attention": {"fuser": "cross_attention"},
    "Mamba": {},
    "Mamba-2": {"ssm": "mamba2"},
    "Mamba, four zigzag paths": {"scan_order": "zigzag", "conv": "spatial"},
}


class AblatedFit(PromptFit):
    """A fit that minimises some of the terms only."""

    kept: tuple[str, ...] = ("md", "lpips", "so")

    def losses(self, *arguments) -> dict[str, Tensor]:
        terms, config = super().losses(*arguments), self.config
        md, so, lpips = (terms[name] if name in self.kept else 0.0 for name in ("md", "so", "lpips"))
        style = style_loss(terms["dir"], md, so, config.theta, gate_on=terms["dir_unguarded"])
        weight = config.content_weight(self.epoch)
        total = total_loss(style, lpips, terms["vgg"], config.style_weight, weight)
        return {**terms, "style": style, "total": total + config.range_weight * terms["range"]}


class StyleNet(nn.Module):
    """CLIPstyler's: a U-Net of three scales that paints one picture."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()

        def block(a: int, b: int) -> nn.Sequential:
            layers = [
                nn.Conv2d(a, b, 3, padding=1, padding_mode="reflect"),
                nn.InstanceNorm2d(b, affine=True),
                nn.ReLU(),
            ]
            return nn.Sequential(*layers)

        self.begin = block(3, width)
        self.down = nn.ModuleList([block(width, 2 * width), block(2 * width, 4 * width)])
        self.middle = nn.Sequential(*(block(4 * width, 4 * width) for _ in range(3)))
        self.up = nn.ModuleList([block(6 * width, 2 * width), block(3 * width, width)])
        self.end = nn.Conv2d(width, 3, 3, padding=1, padding_mode="reflect")

    def forward(self, image: Tensor) -> Tensor:
        """[-1, 1] -> [0, 1], sides that 4 divides."""
        maps = [self.begin(image)]
        for down in self.down:
            maps.append(down(F.avg_pool2d(maps[-1], 2)))
        x = self.middle(maps.pop())
        for up in self.up:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = up(torch.cat([x, maps.pop()], 1))
        return torch.sigmoid(self.end(x))


class Bench:
    @torch.no_grad()
    def __init__(self, args: argparse.Namespace) -> None:
        self.pipe = StyleMambaPipeline.from_pretrained(args.model, dtype=torch.float32)
        self.pipe.set_progress_bar_config(disable=True)
        self.size, self.epochs, self.seeds = args.size, args.epochs, range(args.seeds)
        names = json.loads(HELD_OUT.read_text(encoding="utf-8"))["photos"][: args.photos]
        self.photos = [photo_square(args.data / name, args.size) for name in names]
        self.alexnet = AlexFeatures.from_file(args.alexnet)
        artworks = Artworks.read(args.data, self.alexnet, args.cache)
        self.judge = StyleJudge(artworks)
        self.artworks = {
            label: artworks.statistics[[i for i, other in enumerate(artworks.labels) if other == label]]
            for label in PROMPTS.values()
        }
        self.source = self.pipe.encode_prompt("a plain photo", recall=False)  # as `fit_style`
        self.asked = {prompt: self.pipe.encode_prompt(prompt) for prompt in PROMPTS}

    def plain(self, **fusion) -> StyleMambaPipeline:
        """The same towers and autoencoder with its own decoder, and a fusion that is the identity."""
        torch.manual_seed(0)
        parts = dict(self.pipe.components)
        config = {k: v for k, v in self.pipe.fusion.config.items() if not k.startswith("_")}
        parts |= {"fusion": StyleFusion(**{**config, **fusion}), "style_decoder": None}
        pipe = StyleMambaPipeline(**parts)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def jobs(self) -> Iterator[tuple[Tensor, str, int]]:
        return product(self.photos, PROMPTS, self.seeds)

    @torch.no_grad()
    def score(self, picture: Tensor, photo: Tensor, prompt: str) -> dict[str, float]:
        """Both pictures (1, 3, S, S) in [0, 1]."""
        encoder, label = self.pipe.encoder, PROMPTS[prompt]
        embeds = [encoder.embed_images(image) for image in (picture, photo)]
        seen = channel_statistics(self.alexnet(square(picture)))
        return {
            "L_dir": 1 - float(directional_cosine(*embeds, self.asked[prompt], self.source)),
            "style": float(style_distance(seen, self.artworks[label], self.alexnet.widths).mean()),
            "judge top-5": float(self.judge.ranks(seen, [label]) < 5),
            "SSIM": float(metrics.ssim(luminance(picture).clamp(0, 1), luminance(photo).clamp(0, 1))),
            "LPIPS": float(self.alexnet.lpips(picture, photo)),
        }

    def fit(self, pipe: StyleMambaPipeline, kept=AblatedFit.kept, frozen_fusion: bool = False) -> dict:
        rows, times = [], []
        config = PromptFitConfig(epochs=self.epochs, image_size=self.size)
        for photo, prompt, seed in self.jobs():
            embeds = self.asked[prompt], self.source
            fit = AblatedFit(pipe, [Content(photo)], prompt, *embeds, config, seed)
            fit.kept = kept
            if frozen_fusion:
                fit.fusion.requires_grad_(False)
            while fit.done < config.steps:
                begin = time.perf_counter()
                fit.step()
                times.append(time.perf_counter() - begin)
            with torch.no_grad():
                picture = (fit.stylize(fit.contents[0]) / 2 + 0.5).clamp(0, 1)
            rows.append(self.score(picture, photo, prompt))
        return mean(rows) | {"ms a step": 1000 * statistics.median(times)}

    def amortised(self) -> dict:
        """What the model gives without any fit."""
        rows = []
        for photo, prompt, _ in self.jobs():
            picture = self.pipe(photo, prompt, output_type="pt").images.clamp(0, 1)
            rows.append(self.score(picture, photo, prompt))
        return mean(rows)

    def race(self, steps: int) -> dict[str, list[tuple[float, float]]]:
        """(seconds, L_dir) after each step of either method, means over photos and prompts, seed 0."""
        runs: dict[str, list[list[tuple[float, float]]]] = {"StyleMamba": [], "CLIPstyler-style": []}
        for photo, prompt in product(self.photos, PROMPTS):
            config = PromptFitConfig(epochs=steps, image_size=self.size)
            fit = PromptFit(
                self.plain(), [Content(photo)], prompt, self.asked[prompt], self.source, config, 0
            )
            runs["StyleMamba"].append(timed(lambda fit=fit: fit.step()["dir_unguarded"], steps))
            runs["CLIPstyler-style"].append(timed(self.clipstyler(photo, prompt), steps))
        return {
            name: [mean_pair(points) for points in zip(*curves, strict=True)] for name, curves in runs.items()
        }

    def clipstyler(self, photo: Tensor, prompt: str) -> Callable[[], float]:
        """One step of its optimisation a call, with its weights; -> L_dir before the step."""
        torch.manual_seed(0)
        encoder, net, image = self.pipe.encoder, StyleNet(), photo * 2 - 1
        optimizer, generator = torch.optim.Adam(net.parameters(), lr=5e-4), torch.Generator().manual_seed(0)
        text = {"FT": self.asked[prompt], "Fsrc": self.source}
        with torch.no_grad():
            origin = encoder.embed_images(photo)
        content = PerceptualLoss(self.pipe.perceptual, image)

        def step() -> float:
            result = net(image)
            whole = directional_loss(encoder.embed_images(result), origin, **text)
            crops = random_crops(
                result, 16, min(128, *result.shape[-2:]), encoder.image_size, generator=generator
            )
            cosines = directional_cosine(encoder.embed_images(crops), origin, **text)
            loss = 500 * whole + 9000 * patch_directional_loss(cosines) + 150 * content(result * 2 - 1)["vgg"]
            loss = loss + 2e-3 * total_variation(result * 2 - 1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return whole.item()

        return step


def timed(step: Callable[[], float], steps: int) -> list[tuple[float, float]]:
    begin, points = time.perf_counter(), []
    for _ in range(steps):
        value = step()
        points.append((time.perf_counter() - begin, value))
    return points


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}


def mean_pair(points: list[tuple[float, float]]) -> tuple[float, float]:
    return tuple(statistics.fmean(values) for values in zip(*points, strict=True))


def table(title: str, rows: dict[str, dict[str, float]]) -> str:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [f"| {title} | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for name, row in rows.items():
        lines.append(
            f"| {name} | " + " | ".join(f"{row[c]:.3f}" if c in row else "-" for c in columns) + " |"
        )
    return "\n".join(lines)


def race_table(curves: dict[str, list[tuple[float, float]]]) -> str:
    """When each method first reaches a level of L_dir."""
    names = list(curves)
    lines = [
        "| L_dir at most | " + " | ".join(f"{name}, steps | seconds" for name in names) + " |",
        "| ---: |" + " ---: |" * (2 * len(names)),
    ]
    for level in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4):
        cells = []
        for name in names:
            reached = next((i for i, (_, value) in enumerate(curves[name]) if value <= level), None)
            cells += ["-", "-"] if reached is None else [f"{reached + 1}", f"{curves[name][reached][0]:.1f}"]
        lines.append(f"| {level} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--alexnet", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--photos", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=50, help="as in table 6")
    parser.add_argument("--race", type=int, default=100, help="steps of figure 5")
    parser.add_argument("--cache", type=Path, default=Path("runs/judge"), help="statistics of the artworks")
    args = parser.parse_args()

    bench = Bench(args)
    plain = bench.plain()
    report = {"losses": {name: bench.fit(plain, kept) for name, kept in LOSSES.items()}}
    report["fusers"] = {
        name: bench.fit(plain if change is None else bench.plain(**change), frozen_fusion=change is None)
        for name, change in FUSERS.items()
    }
    report["start"] = {
        "amortised, no fit": bench.amortised(),
        f"amortised, {args.epochs} epochs": bench.fit(bench.pipe),
    }
    curves = bench.race(args.race)
    text = "\n\n".join(
        [
            f"{args.photos} photos x {len(PROMPTS)} prompts x {args.seeds} seeds, {args.size} px, {args.epochs} epochs, "
            f"torch {torch.__version__}, {torch.get_num_threads()} threads",
            table("losses", report["losses"]),
            table("fuser", report["fusers"]),
            table("start", report["start"]),
            race_table(curves),
        ]
    )
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "ablation.md").write_text(text + "\n", encoding="utf-8")
    (args.out / "ablation.json").write_text(
        json.dumps(report | {"race": curves}, indent=1) + "\n", encoding="utf-8"
    )
    print(text)


if __name__ == "__main__":
    main()
