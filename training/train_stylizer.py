"""Trains what paints: the fusion and the conditional decoder of the bundled model, for all labels at once.

    python training/train_stylizer.py DATA PAIRS OUT --vae VAE --text TOWER --perceptual NET --minutes 60

First a teacher's pictures are reproduced (teach_pairs.py made them), then the losses of the method sharpen what that
left soft: the statistics of feature maps go towards those of the artwork, the content stays the photo's, neighbouring
pixels stay calm. The style comes in as an embedding only: of one of many wordings of a label (style_wordings.py), or, with
--image-encoder, of the artwork itself. `--sharpen-from` says at which share of the time the second part begins.

Runs again from OUT/state.pt if it is there; writes OUT/fusion, OUT/style_decoder and a sheet of samples every few minutes.
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
from diffusers import AutoencoderTiny
from pictures import read
from PIL import Image
from style_wordings import wordings
from teach_pairs import HELD_OUT, LONG_SIDE
from torch import Tensor
from train_autoencoder import picture_distance
from transformers import AutoTokenizer, SiglipTextModel

from stylemamba.pipeline.conditional_decoder import ConditionalDecoder
from stylemamba.pipeline.fusion import StyleFusion
from stylemamba.pipeline.images import to_pil
from stylemamba.pipeline.losses import content_loss
from stylemamba.pipeline.perceptual import VGGFeatures
from stylemamba.pipeline.siglip_encoder import SiglipEncoder
from stylemamba.pipeline.statistics_encoder import StatisticsEncoder

STYLE_TAPS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
CONTENT_TAPS = ("relu3_3", "relu4_3")
STYLE_SIDE = 320  # of an artwork when its statistics are taken: sets how large strokes become
# Labels of the sample sheets.
SAMPLES = (
    "van gogh",
    "ukiyo-e",
    "steel engraving",
    "stained glass window",
    "monet",
    "mosaic",
    "neon",
    "aubrey beardsley",
)


class Pairs:
    """Photos and their stylized versions in memory, as bytes."""

    def __init__(self, data: Path, folder: Path) -> None:
        lines = (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
        self.rows = [json.loads(line) for line in lines]
        self.photos: dict[str, Tensor] = {}
        for row in self.rows:
            if row["photo"] not in self.photos:
                self.photos[row["photo"]] = _read_at_teacher_size(data / row["photo"])
        self.targets = [_read_at_teacher_size(folder / row["file"]) for row in self.rows]

    def crop(self, index: int, size: int, rng: random.Random) -> tuple[Tensor, Tensor]:
        photo, target = self.photos[self.rows[index]["photo"]], self.targets[index]
        # Rounding may have made one of them a pixel smaller.
        sides = (min(pair) for pair in zip(photo.shape[-2:], target.shape[-2:], strict=True))
        top, left = (rng.randint(0, side - size) for side in sides)
        pair = [image[:, top : top + size, left : left + size] for image in (photo, target)]
        return tuple(image.flip(-1) for image in pair) if rng.random() < 0.5 else tuple(pair)


def _read_at_teacher_size(file: Path) -> Tensor:
    with Image.open(file) as image:
        width, height = image.size
    scale = LONG_SIDE / max(width, height)
    return read(file, min(round(width * scale), round(height * scale)))


@torch.no_grad()
def statistics(perceptual: VGGFeatures, images: Tensor) -> list[Tensor]:
    """Mean and deviation of every channel at each depth: (B, 2, C) for each of STYLE_TAPS."""
    return [_mean_std(maps) for maps in perceptual(images, STYLE_TAPS).values()]


def _mean_std(maps: Tensor) -> Tensor:
    deviation = (maps.var((2, 3), correction=0) + 1e-5).sqrt()
    return torch.stack([maps.mean((2, 3)), deviation], 1)


def statistics_distance(got: list[Tensor], wanted: list[Tensor], scales: list[Tensor]) -> Tensor:
    """Mean over depths of the squared differences, each channel in units of how much artworks differ in it."""
    return sum(
        ((g - w) / s).square().clamp(max=16).mean() for g, w, s in zip(got, wanted, scales, strict=True)
    ) / len(got)


class Stylizer(torch.nn.Module):
    def __init__(self, vae: AutoencoderTiny, cond_dim: int) -> None:
        super().__init__()
        channels = vae.config.latent_channels
        self.vae = vae
        self.fusion = StyleFusion(
            channels,
            cond_dim,
            unshuffle=2,
            mlp_ratio=2.0,
            d_state=8,
            scan_order="bidirectional",
            conv="spatial",
        )
        self.decoder = ConditionalDecoder(latent_channels=channels, cond_dim=cond_dim).to(
            memory_format=torch.channels_last
        )

    def forward(self, images: Tensor, embeds: Tensor, strength: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1], embeddings (B, E), strengths (B, 1) -> pictures."""
        with torch.no_grad():
            latents = self.vae.encode(images).latents
        fused = self.fusion(latents, embeds)
        fused = latents + strength[:, :, None, None] * (fused - latents)
        return self.decoder(fused, embeds, strength)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True, help="folder with text_encoder/ and tokenizer/")
    parser.add_argument("--perceptual", type=Path, required=True)
    parser.add_argument("--image-encoder", type=Path, help="teaches style images as well")
    parser.add_argument("--minutes", type=float, default=60, help="of training, all runs together")
    parser.add_argument("--sharpen-from", type=float, default=0.35, help="share of the time")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--style-weight", type=float, default=0.3)
    parser.add_argument("--content-weight", type=float, default=0.1)
    parser.add_argument("--teacher-weight", type=float, default=0.3, help="of the teacher, while sharpening")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    pairs = Pairs(args.data, args.pairs)
    perceptual = VGGFeatures.from_pretrained(args.perceptual).to(memory_format=torch.channels_last)
    artworks = sorted({row["artwork"] for row in pairs.rows})
    wanted = [
        statistics(perceptual, read(args.data / art, STYLE_SIDE)[None].float() / 255) for art in artworks
    ]
    wanted = dict(zip(artworks, wanted, strict=True))
    scales = [torch.cat(depth).std(0, keepdim=True) + 1e-2 for depth in zip(*wanted.values(), strict=True)]

    text_space = embed_labels(args.data, args.text)
    image_space = (
        {} if args.image_encoder is None else embed_artworks(args.data, artworks, args.image_encoder)
    )
    usable = [
        i
        for i, row in enumerate(pairs.rows)
        if (row["stands_for_label"] or row["artwork"] in image_space)
        and min(pairs.targets[i].shape[-2:]) > args.crop  # a panorama may be too flat
    ]

    vae = AutoencoderTiny.from_pretrained(args.vae).requires_grad_(False).eval()
    vae = vae.to(memory_format=torch.channels_last)
    stylizer = Stylizer(vae, cond_dim=next(iter(text_space.values())).shape[1])
    parameters = [*stylizer.fusion.parameters(), *stylizer.decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=args.lr, betas=(0.9, 0.99))
    average = {name: p.detach().clone() for name, p in stylizer.named_parameters() if p.requires_grad}
    state_file, step, spent = args.out / "state.pt", 0, 0.0
    args.out.mkdir(parents=True, exist_ok=True)
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        stylizer.load_state_dict(state["stylizer"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        average, step, spent = state["average"], state["step"], state["spent"]

    begin, saved, logged = time.monotonic() - spent, spent, defaultdict(float)
    while (spent := time.monotonic() - begin) < 60 * args.minutes:
        share = spent / (60 * args.minutes)
        for group in optimizer.param_groups:  # a short warm-up, then cosine over the time budget
            group["lr"] = (
                args.lr * min(1, (step + 1) / 100) * max(0.02, 0.5 + 0.5 * math.cos(math.pi * share))
            )
        sharpening = min(1.0, max(0.0, (share - args.sharpen_from) / 0.1))
        rng = random.Random(f"{args.seed} {step}")
        chosen = rng.choices(usable, k=args.batch)
        photos, targets = zip(*(pairs.crop(i, args.crop, rng) for i in chosen), strict=True)
        photos, targets = (
            torch.stack(side).float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)
            for side in (photos, targets)
        )
        rows = [pairs.rows[i] for i in chosen]
        embeds = torch.stack([draw_embedding(row, text_space, image_space, rng) for row in rows])
        strength = torch.tensor([[draw_strength(rng)] for _ in rows])
        wish = torch.lerp(photos, targets, strength[:, :, None, None])

        result = stylizer(photos, embeds, strength)
        terms = {"teacher": (1 - (1 - args.teacher_weight) * sharpening) * picture_distance(result, wish)}
        full = (strength[:, 0] == 1).nonzero()[:, 0]
        with torch.no_grad():
            of_photo = perceptual(photos / 2 + 0.5, CONTENT_TAPS)
            of_wish = perceptual(wish / 2 + 0.5, ("relu1_2", "relu2_2", "relu3_3"))
        maps = perceptual(result / 2 + 0.5, STYLE_TAPS)
        # Pixels alone give the mean of what might be there, which is blurred; features want it to be one of them.
        terms["features"] = (
            (1 - (1 - args.teacher_weight) * sharpening)
            * 0.2
            * sum((maps[tap] - of_wish[tap]).abs().mean() / of_wish[tap].abs().mean() for tap in of_wish)
        )
        if sharpening and len(full):
            got = [_mean_std(maps[tap][full]) for tap in STYLE_TAPS]
            stats = [
                torch.cat(depth) for depth in zip(*(wanted[rows[i]["artwork"]] for i in full), strict=True)
            ]
            terms["style"] = sharpening * args.style_weight * statistics_distance(got, stats, scales)
            content = content_loss(
                [maps[tap][full] for tap in CONTENT_TAPS],
                [of_photo[tap][full] for tap in CONTENT_TAPS],
                variant="normalised",
            )
            terms["content"] = sharpening * args.content_weight * content
            terms["variation"] = (
                sharpening * 0.05 * (result.diff(dim=-1).abs().mean() + result.diff(dim=-2).abs().mean())
            )
        loss = sum(terms.values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        keep = min(0.999, step / (step + 10))
        with torch.no_grad():
            for name, p in stylizer.named_parameters():
                if name in average:
                    average[name].lerp_(p, 1 - keep)
        for name, term in terms.items():
            logged[name] += term.item() / 100
        if step % 100 == 0:
            print(
                f"{step} steps, {spent / 60:.1f} min, " + " ".join(f"{k} {v:.4f}" for k, v in logged.items()),
                flush=True,
            )
            logged.clear()
        if spent - saved > 180:
            saved = spent
            save(stylizer, average, args.out)
            draw_samples(
                stylizer, average, text_space, args.data, args.out / f"samples-{round(spent / 60):03}.png"
            )
            state = {
                "stylizer": stylizer.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average,
                "step": step,
                "spent": spent,
            }
            torch.save(state, state_file)
    save(stylizer, average, args.out)
    draw_samples(stylizer, average, text_space, args.data, args.out / "samples.png")


@torch.no_grad()
def embed_labels(data: Path, text: Path) -> dict[str, Tensor]:
    """Label -> embeddings of its wordings (N, E)."""
    encoder = SiglipEncoder(
        SiglipTextModel.from_pretrained(text / "text_encoder").eval(),
        AutoTokenizer.from_pretrained(text / "tokenizer"),
    )
    captions: dict[str, list[str]] = {}
    for line in (data / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["kind"] == "style":
            captions[row["label"]] = row["captions"]
    return {label: encoder.embed_texts(wordings(label, texts)) for label, texts in captions.items()}


@torch.no_grad()
def embed_artworks(data: Path, artworks: list[str], folder: Path) -> dict[str, Tensor]:
    encoder = SiglipEncoder(None, image_encoder=StatisticsEncoder.from_pretrained(folder))
    return {art: encoder.embed_images(read(data / art, 256)[None].float() / 255)[0] for art in artworks}


def draw_embedding(row: dict, text_space: dict, image_space: dict, rng: random.Random) -> Tensor:
    """Of words or of the artwork; words are jittered by mixing two wordings, so that the space between them is known."""
    in_words = row["stands_for_label"] and (rng.random() < 0.75 or row["artwork"] not in image_space)
    if not in_words:
        return image_space[row["artwork"]]
    options = text_space[row["label"]]
    first, second = (options[rng.randrange(len(options))] for _ in range(2))
    return F.normalize(torch.lerp(first, second, rng.random() * 0.5), dim=0)


def draw_strength(rng: random.Random) -> float:
    kind = rng.random()
    return 1.0 if kind < 0.8 else 0.0 if kind < 0.88 else rng.uniform(0.2, 0.9)


def save(stylizer: Stylizer, average: dict[str, Tensor], out: Path) -> None:
    with averaged(stylizer, average):
        stylizer.fusion.save_pretrained(out / "fusion")
        stylizer.decoder.save_pretrained(out / "style_decoder")


class averaged:
    """Within it the stylizer has its averaged weights, which paint more calmly than those of any one step."""

    def __init__(self, stylizer: Stylizer, average: dict[str, Tensor]) -> None:
        self.stylizer, self.average = stylizer, average

    def __enter__(self) -> None:
        parameters = dict(self.stylizer.named_parameters())
        self.own = {name: parameters[name].detach().clone() for name in self.average}
        self.stylizer.load_state_dict(self.average, strict=False)

    def __exit__(self, *_) -> None:
        self.stylizer.load_state_dict(self.own, strict=False)


@torch.no_grad()
def draw_samples(stylizer: Stylizer, average: dict, text_space: dict, data: Path, file: Path) -> None:
    """Two held-out photos in some styles, 384 px."""
    rows = []
    with averaged(stylizer, average):
        for name in HELD_OUT["photos"][:3:2]:
            photo = read(data / name, 256)[None, :, :256, :256].float() / 127.5 - 1
            tiles = [photo]
            for label in (label for label in SAMPLES if label in text_space):
                tiles.append(stylizer(photo, text_space[label][:1], torch.ones(1, 1)))
            rows.append(torch.cat(tiles, -1))
    to_pil(torch.cat(rows, -2).clamp(-1, 1) / 2 + 0.5).save(file)


if __name__ == "__main__":
    main()
