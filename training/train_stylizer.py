"""Trains what paints: the fusion and the conditional decoder of the bundled model, for all labels at once.

    python training/train_stylizer.py DATA PAIRS OUT --vae VAE --text TOWER --image-encoder TOWER --vgg VGG16 --minutes 120

First a teacher's pictures are reproduced pixel by pixel (teach_pairs.py made them, finish_pairs.py went over them), which
gets colours and edges right and leaves strokes soft. Then a VGG16 compares: each map with that of the teacher's picture of the same photo, its statistics
with those of the same piece of that picture, and, with less weight, with those of the artwork. Without the teacher's strokes
the artwork's statistics are a trap: a lattice of dots all over the photo has them too. The style comes in as an embedding
only: of one of many wordings of a label (style_wordings.py), or of the artwork itself. `--sharpen-from` says after which
share of the time the second part begins.

Runs again from OUT/state.pt if it is there; writes OUT/style_memory, OUT/fusion, OUT/style_decoder and a sheet of samples every few minutes.
"""

import argparse
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from manifest import HELD_OUT, read_manifest
from pictures import picture_distance, read, read_unit
from PIL import Image
from style_wordings import wordings
from teach_pairs import LONG_SIDE
from teacher_vgg import Teacher, load_teacher
from timed_run import TimedRun, add_run_options, save_whole
from torch import Tensor
from transformers import AutoTokenizer, SiglipTextModel

from stylemamba.pipeline.conditional_decoder import ConditionalDecoder
from stylemamba.pipeline.fusion import StyleFusion
from stylemamba.pipeline.images import to_pil
from stylemamba.pipeline.latents import BEYOND, encode_latents
from stylemamba.pipeline.siglip_encoder import SiglipEncoder
from stylemamba.pipeline.statistics_encoder import StatisticsEncoder
from stylemamba.pipeline.style_memory import StyleMemory

# Maps of the pictures at full size, and at `VIEW` of it.
NEAR_TAPS = ("1_2", "2_2")
FAR_TAPS = ("2_2", "3_3", "4_2")
STYLE_TAPS = ("1_2", "2_2", "3_3", "4_3")
# The VGG16 sees results at half their size and artworks at about their own: strokes become twice as large, and a picture of 512 px
# is compared with artworks of 256.
STYLE_SIDE, VIEW = 256, 1 / 2
# Times the tokens that a scan has read at the first, drawn for each step: a state that is never quite full learns to fill soon. With
# 0.5 to 3 it learnt to fill more slowly still.
WARM_UPS = (0.2, 0.5)
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
                self.photos[row["photo"]] = read_at_teacher_size(data / row["photo"])
        self.targets = [read_at_teacher_size(folder / row["file"]) for row in self.rows]

    def crop(self, index: int, size: int, rng: random.Random) -> tuple[Tensor, Tensor]:
        photo, target = self.photos[self.rows[index]["photo"]], self.targets[index]
        # Rounding may have made one of them a pixel smaller.
        sides = (min(pair) for pair in zip(photo.shape[-2:], target.shape[-2:], strict=True))
        top, left = (rng.randint(0, side - size) for side in sides)
        pair = [image[:, top : top + size, left : left + size] for image in (photo, target)]
        return tuple(image.flip(-1) for image in pair) if rng.random() < 0.5 else tuple(pair)


def read_at_teacher_size(file: Path) -> Tensor:
    with Image.open(file) as image:
        width, height = image.size
    scale = LONG_SIDE / max(width, height)
    return read(file, min(round(width * scale), round(height * scale)))


class StyleStatistics(NamedTuple):
    """Of one tap, for B pictures: mean and deviation of every channel (B, 2, C), and their Gram matrix (B, C, C)."""

    mean_std: Tensor
    gram: Tensor


def statistics(maps: Tensor) -> StyleStatistics:
    tokens = maps.permute(0, 2, 3, 1).flatten(1, 2)  # (B, HW, C), as they lie
    gram, mean = (tokens.mT @ tokens).float() / tokens.shape[1], tokens.float().mean(1)
    deviation = (gram.diagonal(dim1=1, dim2=2) - mean.square()).clamp(min=1e-5).sqrt()
    return StyleStatistics(torch.stack([mean, deviation], 1), gram)


def style_distance(got: StyleStatistics, wanted: StyleStatistics, scale: Tensor) -> Tensor:
    """Means and deviations in units of how much artworks differ in them, Gram matrices by their relative error."""
    moments = ((got.mean_std - wanted.mean_std) / scale).square().clamp(max=16).mean()
    gram = (got.gram - wanted.gram).square().sum((1, 2)) / wanted.gram.square().sum((1, 2))
    return moments + gram.clamp(max=16).mean()


def statistics_distance(
    got: list[StyleStatistics], wanted: list[StyleStatistics], scales: list[Tensor]
) -> Tensor:
    """The mean over taps; `scales` may go on with deeper taps."""
    return sum(map(style_distance, got, wanted, scales)) / len(got)


def map_distance(got: dict[str, Tensor], wanted: dict[str, Tensor], taps: tuple[str, ...]) -> Tensor:
    """Of maps at the same place: the squared error in units of the squares of what is wanted, averaged over taps."""
    pairs = [(got[tap].float(), wanted[tap].float()) for tap in taps]
    return sum(
        ((a - b).square().mean((1, 2, 3)) / b.square().mean((1, 2, 3))).mean() for a, b in pairs
    ) / len(taps)


class Stylizer(torch.nn.Module):
    def __init__(self, vae: AutoencoderTiny, cond_dim: int, reads_fine_light: bool = False) -> None:
        super().__init__()
        channels = vae.config.latent_channels
        self.vae = vae
        self.fusion = StyleFusion(
            channels,
            cond_dim,
            unshuffle=1,  # with patches of latents a style paints a grid: the same offset into every patch
            mlp_ratio=2.0,
            d_state=8,
            scan_order="bidirectional",
            conv="spatial",
            warm_up=8192,
        )
        decoder = ConditionalDecoder(
            latent_channels=channels, cond_dim=cond_dim, reads_fine_light=reads_fine_light
        )
        self.decoder = decoder.to(memory_format=torch.channels_last)
        self.decoder.grain_low.drifts = self.decoder.grain_mid.drifts = True

    def fuse(self, images: Tensor, embeds: Tensor, strength: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1], embeddings (B, E), strengths (B, 1) -> latents (B, C, h, w)."""
        with torch.no_grad():
            latents = encode_latents(self.vae, images, BEYOND)
        fused = self.fusion(latents, embeds)
        return latents + strength[:, :, None, None] * (fused - latents)

    def forward(self, images: Tensor, embeds: Tensor, strength: Tensor) -> Tensor:
        """As `fuse`, -> pictures."""
        return self.decoder(self.fuse(images, embeds, strength), embeds, strength)


@contextmanager
def shorter_warm_up(fusion: StyleFusion, rng: random.Random) -> Iterator[None]:
    """While it lasts, the scans have read fewer tokens when they come to the first: what is close to a picture's border must not have
    colours of its own."""
    own = fusion.config.warm_up
    drawn = round(own * rng.uniform(*WARM_UPS))
    try:
        for block in fusion.blocks:
            block.mixer.warm_up = drawn
        yield
    finally:
        for block in fusion.blocks:
            block.mixer.warm_up = own


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True, help="folder with text_encoder/ and tokenizer/")
    parser.add_argument("--image-encoder", type=Path, required=True)
    parser.add_argument("--vgg", type=Path, required=True, help="weights of a VGG16, see README.md")
    parser.add_argument(
        "--sharpen-from", type=float, default=0.125, help="share of the time, for pixels alone"
    )
    parser.add_argument("--crop", type=int, default=160)
    parser.add_argument(
        "--teacher-weight", type=float, default=0.7, help="of the teacher's pixels, while sharpening"
    )
    parser.add_argument("--strokes-weight", type=float, default=1.0, help="of the teacher's maps")
    parser.add_argument(
        "--texture-weight", type=float, default=0.5, help="of the statistics of the teacher's maps"
    )
    parser.add_argument(
        "--style-weight", type=float, default=0.1, help="of the statistics of the artwork's maps"
    )
    parser.add_argument("--label-weight", type=float, default=0.05, help="of the embedding of the result")
    add_run_options(parser, minutes=120, lr=2e-3, batch=5)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    pairs = Pairs(args.data, args.pairs)
    maps_of = see(args.vgg, 4, args.device, args.bfloat16)
    close_maps_of = see(args.vgg, 2, args.device, args.bfloat16)

    artworks = sorted({row["artwork"] for row in pairs.rows})
    cache = args.out / "statistics.pt"  # minutes of work
    if not cache.exists():
        args.out.mkdir(parents=True, exist_ok=True)
        wanted = [
            taken(maps_of(read_unit(args.data / art, STYLE_SIDE, args.device)), STYLE_TAPS)
            for art in artworks
        ]
        save_whole([[tuple(tap) for tap in of_art] for of_art in wanted], cache)
    wanted = torch.load(cache, map_location=args.device, weights_only=True)
    wanted = [[StyleStatistics(*tap) for tap in of_art] for of_art in wanted]
    scales = [torch.cat([w.mean_std for w in tap]).std(0) + 1e-2 for tap in zip(*wanted, strict=True)]
    wanted = dict(zip(artworks, wanted, strict=True))

    tower = StatisticsEncoder.from_pretrained(args.image_encoder).to(args.device)
    judge = SiglipEncoder(None, image_encoder=tower)
    text_space = embed_labels(args.data, args.text)
    memory = StyleMemory.of(torch.stack([embeds.mean(0) for embeds in text_space.values()]))
    memory.save_pretrained(args.out / "style_memory")
    text_space = {label: memory(embeds) for label, embeds in text_space.items()}
    image_space = embed_artworks(args.data, artworks, judge)
    usable = [
        i
        for i, row in enumerate(pairs.rows)
        if min(pairs.targets[i].shape[-2:]) > args.crop  # a panorama may be too flat
    ]
    # Words are what most people will give: the artworks that stand for them come up more often.
    chances = [3 if pairs.rows[i]["stands_for_label"] else 1 for i in usable]

    vae = AutoencoderTiny.from_pretrained(args.vae).requires_grad_(False).eval()
    vae = vae.to(memory_format=torch.channels_last)
    stylizer = Stylizer(vae, cond_dim=next(iter(text_space.values())).shape[1]).to(args.device)
    parameters = [*stylizer.fusion.parameters(), *stylizer.decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=args.lr, betas=(0.9, 0.99))
    average = {name: p.detach().clone() for name, p in stylizer.named_parameters() if p.requires_grad}
    run = TimedRun(args.out / "state.pt", args.minutes, optimizer, warm_up=100, least=0.02)
    if run.kept:
        stylizer.load_state_dict(run.kept["stylizer"], strict=False)
        average = {name: kept.to(args.device) for name, kept in run.kept["average"].items()}
    for step in run:
        sharpening = min(1.0, max(0.0, run.share - args.sharpen_from) * 24)  # fades in
        rng = random.Random(f"{args.seed} {step}")
        chosen = rng.choices(usable, chances, k=args.batch)
        photos, targets = zip(*(pairs.crop(i, args.crop, rng) for i in chosen), strict=True)
        photos, targets = (
            torch.stack(side).to(args.device).float().div_(127.5).sub_(1)
            .contiguous(memory_format=torch.channels_last)
            for side in (photos, targets)
        )  # fmt: skip
        rows = [pairs.rows[i] for i in chosen]
        embeds = torch.stack([draw_embedding(row, text_space, image_space, rng) for row in rows])
        embeds = embeds.to(args.device)
        strength = torch.tensor([[draw_strength(rng)] for _ in rows], device=args.device)
        wish = torch.lerp(photos, targets, strength[:, :, None, None])

        autocast = torch.autocast(args.device.type, torch.bfloat16, enabled=args.bfloat16)
        with autocast, shorter_warm_up(stylizer.fusion, rng):
            result = stylizer(photos, embeds, strength).float()
        weight = 1 - sharpening * strength[:, 0].floor() * (1 - args.teacher_weight)
        terms = {"teacher": (weight * picture_distance(result, wish)).mean()}
        full = (strength[:, 0] == 1).nonzero()[:, 0]
        if sharpening and len(full):
            painted, taught = (pictures[full] / 2 + 0.5 for pictures in (result, targets))
            near, far = close_maps_of(painted), maps_of(at_view(painted))
            with torch.no_grad():
                near_taught, far_taught = close_maps_of(taught), maps_of(at_view(taught))
            terms["strokes"] = args.strokes_weight * (
                map_distance(near, near_taught, NEAR_TAPS) + map_distance(far, far_taught, FAR_TAPS)
            )
            terms["texture"] = args.texture_weight * (
                statistics_distance(taken(near, NEAR_TAPS), taken(near_taught, NEAR_TAPS), scales)
                + statistics_distance(taken(far, STYLE_TAPS), taken(far_taught, STYLE_TAPS), scales)
            )
            arts = zip(*(wanted[rows[i]["artwork"]] for i in full), strict=True)
            arts = [StyleStatistics(*map(torch.cat, zip(*of_tap, strict=True))) for of_tap in arts]
            style = statistics_distance(taken(far, STYLE_TAPS), arts, scales)
            terms["style"] = args.style_weight * style
            likeness = (judge.embed_images(painted) * embeds[full]).sum(1).mean()
            terms["label"] = args.label_weight * (1 - likeness)
            calm = painted.diff(dim=-1).abs().mean() + painted.diff(dim=-2).abs().mean()
            terms["variation"] = 0.1 * calm
            terms = {name: term if name == "teacher" else sharpening * term for name, term in terms.items()}
        loss = sum(terms.values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        keep = min(0.997, (step + 1) / (step + 11))
        with torch.no_grad():
            for name, p in stylizer.named_parameters():
                if name in average:
                    average[name].lerp_(p, 1 - keep)
        run.log(**terms)
        if run.due():
            save(stylizer, average, args.out)
            sheet = args.out / f"samples-{round(run.spent / 60):03}.png"
            draw_samples(stylizer, average, text_space, args.data, sheet)
            run.save(stylizer=stylizer.state_dict(), average=average)
    run.save(stylizer=stylizer.state_dict(), average=average)
    save(stylizer, average, args.out)
    draw_samples(stylizer, average, text_space, args.data, args.out / "samples.png")


def see(vgg: Path, stages: int, device: torch.device, bfloat16: bool) -> Teacher:
    network, _ = load_teacher(vgg, stages, device)

    def maps_of(images: Tensor) -> dict[str, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            return network(images)

    return maps_of


def at_view(images: Tensor, scale: float = VIEW) -> Tensor:
    return F.interpolate(images, scale_factor=scale, mode="bilinear", antialias=True, align_corners=False)


def numbers_of(maps: dict[str, Tensor]) -> Tensor:
    """What a judge knows a picture by: means and deviations, (B, D)."""
    return torch.cat([statistics(maps[tap]).mean_std.flatten(1) for tap in STYLE_TAPS], 1)


def taken(maps: dict[str, Tensor], taps: tuple[str, ...]) -> list[StyleStatistics]:
    return [statistics(maps[tap]) for tap in taps]


@torch.no_grad()
def embed_labels(data: Path, text: Path) -> dict[str, Tensor]:
    """Label -> embeddings of its wordings (N, E)."""
    encoder = SiglipEncoder(
        SiglipTextModel.from_pretrained(text / "text_encoder").eval(),
        AutoTokenizer.from_pretrained(text / "tokenizer"),
    )
    captions = {row["label"]: row["captions"] for row in read_manifest(data, "style")}
    return {label: encoder.embed_texts(wordings(label, texts)) for label, texts in captions.items()}


@torch.no_grad()
def embed_artworks(data: Path, artworks: list[str], encoder: SiglipEncoder) -> dict[str, Tensor]:
    device = encoder.image_encoder.device
    return {art: encoder.embed_images(read_unit(data / art, 256, device))[0].cpu() for art in artworks}


def draw_embedding(row: dict, text_space: dict, image_space: dict, rng: random.Random) -> Tensor:
    """Of words or of the artwork; words are jittered by mixing two wordings, so that the space between them is known."""
    if not row["stands_for_label"] or rng.random() < 0.2:
        return image_space[row["artwork"]]
    options = text_space[row["label"]]
    first, second = (options[rng.randrange(len(options))] for _ in range(2))
    return F.normalize(torch.lerp(first, second, rng.random() * 0.5), dim=0)


def draw_strength(rng: random.Random) -> float:
    """The two ends: between them the decoder mixes their pictures."""
    return 1.0 if rng.random() < 0.9 else 0.0


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
    rows, device = [], next(stylizer.parameters()).device
    with averaged(stylizer, average):
        for name in HELD_OUT["photos"][:3:2]:
            photo = read_unit(data / name, 256, device)[..., :256, :256] * 2 - 1
            tiles = [photo]
            for label in (label for label in SAMPLES if label in text_space):
                embeds, strength = text_space[label][:1].to(device), torch.ones(1, 1, device=device)
                tiles.append(stylizer(photo, embeds, strength))
            rows.append(torch.cat(tiles, -1))
    to_pil(torch.cat(rows, -2).clamp(-1, 1).cpu() / 2 + 0.5).save(file)


if __name__ == "__main__":
    main()
