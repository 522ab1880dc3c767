"""Trains SaMam or Mamba-ST: one network that takes any style image.

    python training/train_image_guided.py DATA PAIRS OUT --model samam --vgg VGG16 --minutes 90

The losses are those of all papers of this family: content (standardised maps of a VGG), style (means and deviations of its
maps), and two identities, of a photo in its own style and of an artwork in its own. Two things keep them from running away: the
VGG's channels are scaled to a root mean square of one, and the style is measured in units of how much artworks differ. A
teacher's pictures (teach_pairs.py made them) pull towards strokes as well, by their pixels and the first maps of the VGG;
without a pixel skip let them do so alone for a while (`--losses-from`), or the losses paint speckle from a random start.

Runs again from OUT/state.pt if it is there; writes the pipeline OUT/pipeline, in half precision, and a sheet of held-out
photos in the styles of paintings that no training sees every few minutes.
"""

import argparse
import json
import math
import random
import time
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from pictures import read
from teach_pairs import HELD_OUT
from teacher_vgg import Teacher, load_teacher
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from train_stylizer import Pairs, draw_strength, picture_distance, statistics

from stylemamba import MambaST, MambaSTPipeline, SaMam, SaMamPipeline
from stylemamba.pipeline.controls import in_palette, palette, resize
from stylemamba.pipeline.images import to_pil
from stylemamba.pipeline.losses import (
    content_loss,
    identity_losses,
    image_style_total,
)

# Sizes of the bundled models: about half a second at 512 px on one core.
SIZES = {
    "samam": {
        "embed_dim": 64, "patch_size": 4, "style_dim": 64, "encoder_depth": 1, "groups": 2, "group_depth": 1,
        "decoder_width": 64, "d_state": 8, "pixel_skip": True,
    },
    "mamba-st": {
        "embed_dim": 64, "patch_size": 4, "encoder_depth": 1, "depth": 2, "decoder_width": 64, "d_state": 8,
        "scan_order": "zigzag", "pixel_skip": True,
    },
}  # fmt: skip
MODELS = {"samam": (SaMam, SaMamPipeline), "mamba-st": (MambaST, MambaSTPipeline)}
# Of content, style and the two identities. The papers' 7, 7 or 10, 70 and 1 are for style in other units, and for a network that
# has to learn to give a picture back: where the pixels skip it, such identities hold it at no strokes at all.
WEIGHTS = (2.0, 7.0, 1.0, 0.05)
TAPS = ("1_1", "2_1", "3_1", "4_1", "5_1")
CONTENT_TAPS = slice(3, 5)
STYLE_SIDE = 256  # of an artwork
STYLE_CROP = 192  # of it, most, so that its colours are there
TEACHER_TAPS = slice(0, 3)  # the teacher's strokes, not only its pixels, are to be reproduced
IDENTITY_CROP = 96  # of the pictures that are to stay as they are


class ScaledMaps:
    """The five maps of the losses, each channel divided by its root mean square over some artworks."""

    def __init__(self, vgg: Teacher, artworks: list[Tensor]) -> None:
        self.vgg = vgg
        with torch.no_grad():
            powers = [[m.float().square().mean((0, 2, 3)) for m in self._maps(art)] for art in artworks]
            powers = [torch.stack(of_tap).mean(0) for of_tap in zip(*powers, strict=True)]
            self.scales = [(power.sqrt() + 0.01 * power.mean().sqrt())[:, None, None] for power in powers]
            moments = [[statistics(m).mean_std for m in self(art)] for art in artworks]  # (1, 2, C) each
        self.spreads = [torch.cat(of_tap).std(0) + 0.05 for of_tap in zip(*moments, strict=True)]

    def _maps(self, images: Tensor) -> list[Tensor]:
        maps = self.vgg(images)
        return [maps[tap] for tap in TAPS]

    def __call__(self, images: Tensor) -> list[Tensor]:
        return [maps.float() / scale for maps, scale in zip(self._maps(images), self.scales, strict=True)]

    def style_loss(self, got: list[Tensor], wanted: list[Tensor]) -> Tensor:
        """Means and deviations in units of how much artworks differ in them. As they are, a channel that hardly ever fires
        but fires in one artwork weighs a thousand times all others."""
        gaps = (
            ((statistics(a).mean_std - statistics(b).mean_std) / spread).square().clamp(max=16).mean()
            for a, b, spread in zip(got, wanted, self.spreads, strict=True)
        )
        return sum(gaps)


def crop(image: Tensor, size: int, rng: random.Random) -> Tensor:
    top, left = (rng.randint(0, side - size) for side in image.shape[-2:])
    return image[:, top : top + size, left : left + size]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", choices=SIZES, required=True)
    parser.add_argument("--vgg", type=Path, required=True, help="weights of a VGG16, see README.md")
    parser.add_argument("--config", type=json.loads, default={}, help="JSON: other sizes, or an ablation")
    parser.add_argument("--minutes", type=float, default=90, help="of training, all runs together")
    parser.add_argument(
        "--steps", type=int, help="end after so many steps, whatever the minutes: for comparisons"
    )
    parser.add_argument("--losses-from", type=float, default=0, help="minutes")
    parser.add_argument("--teacher-weight", type=float, default=4.0, help="beside the losses")
    parser.add_argument("--shuffles", type=int, choices=(0, 1), default=1, help="of Mamba-ST's style tokens")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--judged", type=int, default=2, help="pictures of a batch that the losses see")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bfloat16", action="store_true", help="for convolutions, where the machine has it")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    kind, pipeline = MODELS[args.model]
    model = kind(**{**SIZES[args.model], **args.config}).to(device, memory_format=torch.channels_last)
    options = {"shuffles": args.shuffles} if args.model == "mamba-st" else {}

    pairs = Pairs(args.data, args.pairs)
    artworks = {
        art: read(args.data / art, STYLE_SIDE) for art in sorted({row["artwork"] for row in pairs.rows})
    }
    usable = [i for i in range(len(pairs.rows)) if min(pairs.targets[i].shape[-2:]) > args.crop]
    vgg, _ = load_teacher(args.vgg)
    some = random.Random(0).sample(sorted(artworks), min(40, len(artworks)))

    def maps_of(images: Tensor) -> dict[str, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bfloat16):
            return vgg(images)

    features = None  # the VGG is run through once they are needed
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, betas=(0.9, 0.99))
    average = AveragedModel(model, avg_fn=lambda kept, new, n: kept.lerp(new, max(0.001, 10 / (n + 10))))
    state_file, step, spent = args.out / "state.pt", 0, 0.0
    args.out.mkdir(parents=True, exist_ok=True)
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.load_state_dict(state["average"])
        step, spent = state["step"], state["spent"]

    begin, saved, logged = time.monotonic() - spent, spent, defaultdict(list)
    while True:
        spent = time.monotonic() - begin
        share = step / args.steps if args.steps else spent / (60 * args.minutes)
        if share >= 1:
            break
        for group in optimizer.param_groups:  # a short warm-up, then cosine over the budget
            group["lr"] = (
                args.lr * min(1, (step + 1) / 100) * max(0.02, 0.5 + 0.5 * math.cos(math.pi * share))
            )
        by_losses = min(1.0, max(0.0, spent / 60 - args.losses_from) / 5)  # fades in over five minutes
        rng = random.Random(f"{args.seed} {step}")
        torch.manual_seed(rng.randrange(2**31))  # of the shuffles
        chosen = rng.choices(usable, k=args.batch)
        photos, targets = zip(*(pairs.crop(i, args.crop, rng) for i in chosen), strict=True)
        styles = [crop(artworks[pairs.rows[i]["artwork"]], STYLE_CROP, rng) for i in chosen]
        photos, targets, styles = (
            torch.stack(side).to(device).float().div_(255).contiguous(memory_format=torch.channels_last)
            for side in (photos, targets, styles)
        )
        strength = torch.tensor([draw_strength(rng) for _ in chosen], device=device)  # (B,)
        wide = strength.view(-1, 1, 1, 1)

        with torch.autocast(device.type, torch.bfloat16, enabled=args.bfloat16):
            result = model(photos, styles, wide, **options).float()
        if model.config.pixel_skip:  # the colours are right from the start; what is to be learnt are strokes
            targets = in_palette(targets, *palette(styles)).clamp(0, 1)
        wanted = torch.lerp(photos, targets, wide)
        distance = picture_distance(result, wanted, torch.ones_like(strength))
        terms = {"teacher": distance}
        full = (strength == 1).nonzero()[: args.judged, 0]
        loss = args.teacher_weight * distance
        if len(full):
            features = features or ScaledMaps(
                maps_of, [artworks[a][None].to(device).float() / 255 for a in some]
            )
            got = features(result[full])
            with torch.no_grad():
                of_teacher = features(wanted[full])[TEACHER_TAPS]
            pairs_of_maps = zip(got[TEACHER_TAPS], of_teacher, strict=True)
            terms["teacher_maps"] = sum(F.l1_loss(a, b) for a, b in pairs_of_maps)
            loss = loss + args.teacher_weight / 4 * terms["teacher_maps"]
        if by_losses and len(full):
            with torch.no_grad():
                of_photo, of_style = features(photos[full]), features(styles[full])
            same = torch.stack([side[0, :, :IDENTITY_CROP, :IDENTITY_CROP] for side in (photos, styles)])
            with torch.autocast(device.type, torch.bfloat16, enabled=args.bfloat16):
                again = model(same, same, **options).float()
            pixels, maps = identity_losses(again[:1], same[:1], again[1:], same[1:], features)
            terms["content"] = content_loss(got[CONTENT_TAPS], of_photo[CONTENT_TAPS])
            terms["style"] = features.style_loss(got, of_style)
            terms["identity"], terms["identity_maps"] = pixels, maps
            total = image_style_total(terms["content"], terms["style"], pixels, maps, WEIGHTS)
            loss = loss + by_losses * total
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        step += 1
        for name, term in terms.items():
            logged[name].append(term.item())
        if step % 50 == 0:
            means = " ".join(f"{name} {sum(values) / len(values):.4f}" for name, values in logged.items())
            print(f"{step} steps, {spent / 60:.1f} min, {means}", flush=True)
            logged.clear()
        if spent - saved > 180:
            saved = spent
            save(pipeline(average.module), args, f"samples-{round(spent / 60):03}.png")
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average.state_dict(),
                "step": step,
                "spent": spent,
            }
            torch.save(state, state_file)
    save(pipeline(average.module), args, "samples.png")


def save(pipe: SaMamPipeline | MambaSTPipeline, args: argparse.Namespace, sheet: str) -> None:
    """The pipeline, and three held-out photos in six unseen styles, 256 px."""
    pipe.set_progress_bar_config(disable=True)
    photos = [read(args.data / name, 256)[:, :256, :256] / 255 for name in HELD_OUT["photos"][:3]]
    lines = (args.data / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    paintings = [row["file"] for row in rows if row["kind"] == "eval" and row["role"] == "style"][::2]
    styles = [read(args.data / name, 256) / 255 for name in paintings]
    tiles = [[torch.ones(1, 3, 256, 256), *(resize(style[None], (256, 256)) for style in styles)]]
    for photo in photos:
        tiles.append(
            [photo[None], *pipe(photo, [style[None] for style in styles], output_type="pt").images.split(1)]
        )
    to_pil(torch.cat([torch.cat([tile.cpu() for tile in row], -1) for row in tiles], -2)).save(
        args.out / sheet
    )
    # A copy, so that training goes on in full precision.
    half = type(pipe)(type(pipe.model).from_config(pipe.model.config).half(), pipe.config.style_size)
    half.model.load_state_dict(pipe.model.state_dict())
    half.save_pretrained(args.out / "pipeline")


if __name__ == "__main__":
    main()
