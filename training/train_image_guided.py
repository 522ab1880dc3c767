"""Trains SaMam or Mamba-ST: one network that takes any style image.

    python training/train_image_guided.py DATA PAIRS OUT --model samam --tiny ../weights/tiny --vgg VGG16 --minutes 60

From a random start the losses of these papers need 160,000 steps. Here the model first learns what the bundled StyleMamba model
knows, without painting a picture: the latents of the photo, and the same fused with the style (`imitation`). Its decoder and what
steers that it takes over as they are. Then all of it learns by the losses: content (standardised maps of a VGG),
style (means and deviations of its maps, in units of how much artworks differ in them), and two identities, of a photo in its
own style and of an artwork in its own.

PAIRS names the photos and artworks (`teach_pairs.py --list-only` makes it). With `--start` a trained model goes on from there, with
the decoder that `tiny` has by now. Runs again from OUT/state.pt if it is there; writes the pipeline
OUT/pipeline, in half precision, and a sheet of held-out photos in the styles of paintings that no training sees every few minutes.
"""

import argparse
import hashlib
import json
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from manifest import HELD_OUT, read_manifest
from pictures import read
from teacher_vgg import Teacher, load_teacher
from timed_run import TimedRun, add_run_options, save_whole
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from train_stylizer import at_view, read_at_teacher_size, statistics

from stylemamba import MambaST, MambaSTPipeline, SaMam, SaMamPipeline
from stylemamba.pipeline.conditional_decoder import ConditionalDecoder
from stylemamba.pipeline.controls import resize
from stylemamba.pipeline.fusion import StyleFusion
from stylemamba.pipeline.images import to_pil
from stylemamba.pipeline.losses import content_loss, identity_losses, image_style_total
from stylemamba.pipeline.statistics_encoder import StatisticsEncoder

# Sizes of the bundled models; their decoder is that of `tiny`.
SIZES = {
    "samam": {
        "embed_dim": 64, "patch_size": 4, "style_dim": 64, "encoder_depth": 1, "groups": 2, "group_depth": 1, "d_state": 8,
    },
    "mamba-st": {
        "embed_dim": 64, "patch_size": 4, "encoder_depth": 1, "depth": 2, "d_state": 8, "scan_order": "zigzag",
    },
}  # fmt: skip
MODELS = {"samam": (SaMam, SaMamPipeline), "mamba-st": (MambaST, MambaSTPipeline)}
# Of content, style and the two identities. The papers' 7, 7 or 10, 70 and 1 are for style in other units.
WEIGHTS = (1.0, 1.0, 1.0, 0.02)
TAPS = ("1_1", "2_1", "3_1", "4_1", "5_1")
CONTENT_TAPS = slice(3, 5)
STYLE_SIDE = 256  # of an artwork
STYLE_CROP = 192  # of it, most, so that its colours are there
IDENTITY_EVERY = 8  # steps; they cost half of one
IDENTITY_CROP = 96  # of the pictures that are to stay as they are


class ScaledMaps:
    """The five maps of the losses, each channel divided by its root mean square over some artworks."""

    def __init__(self, vgg: Teacher, artworks: list[Tensor]) -> None:
        self.vgg = vgg
        with torch.no_grad():
            powers = [[m.float().square().mean((0, 2, 3)) for m in self._maps(art)] for art in artworks]
            powers = [torch.stack(of_tap).mean(0) for of_tap in zip(*powers, strict=True)]
            self.scales = [(power.sqrt() + 0.01 * power.mean().sqrt())[:, None, None] for power in powers]
        moments = [self.moments(art) for art in artworks]
        self.spreads = [torch.cat(of_tap).std(0) + 0.05 for of_tap in zip(*moments, strict=True)]

    def _maps(self, images: Tensor) -> list[Tensor]:
        maps = self.vgg(images)
        return [maps[tap] for tap in TAPS]

    def __call__(self, images: Tensor) -> list[Tensor]:
        return [maps.float() / scale for maps, scale in zip(self._maps(images), self.scales, strict=True)]

    @torch.no_grad()
    def moments(self, artwork: Tensor) -> list[Tensor]:
        """Means and deviations of its maps, (1, 2, C) each."""
        return [statistics(m).mean_std for m in self(artwork)]

    def style_loss(self, got: list[Tensor], wanted: list[Tensor]) -> Tensor:
        """Between maps and the moments of artworks, in units of how much artworks differ in them. As they are, a channel
        that hardly ever fires but fires in one artwork weighs a thousand times all others."""
        return sum(
            F.smooth_l1_loss(statistics(a).mean_std / spread, b / spread)
            for a, b, spread in zip(got, wanted, self.spreads, strict=True)
        )


class Imitated(nn.Module):
    """The parts of the bundled model that are imitated."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.vae = AutoencoderTiny.from_pretrained(folder, subfolder="vae").float()
        self.fusion = StyleFusion.from_pretrained(folder, subfolder="fusion").float()
        self.decoder = ConditionalDecoder.from_pretrained(folder, subfolder="style_decoder").float()
        self.tower = StatisticsEncoder.from_pretrained(folder, subfolder="image_encoder").float()
        self.requires_grad_(False).eval()

    def options(self) -> dict[str, dict]:
        return {"decoder": _options(self.decoder), "tower": _options(self.tower)}

    @torch.no_grad()
    def latents(self, photos: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Of the photos (B, 3, H, W) in [0, 1], and fused with the style (B, E)."""
        plain = self.vae.encode(photos * 2 - 1).latents
        return plain, self.fusion(plain, codes)


def _options(module: ConditionalDecoder | StatisticsEncoder) -> dict:
    return {name: value for name, value in module.config.items() if not name.startswith("_")}


def imitation(model: SaMam | MambaST, plain: Tensor, fused: Tensor, tiny: Imitated, photos: Tensor) -> Tensor:
    """How far the features before and behind the style are from latents of `tiny`, relative to the variance of those."""
    before, (behind, _, signature) = model.uncarry(plain)[0], model.uncarry(fused)
    wanted = tiny.latents(photos, signature[:, :-12])
    return sum(
        (model.to_latents(features).float() - latents).square().mean() / latents.var()
        for features, latents in zip((before, behind), wanted, strict=True)
    )


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
    parser.add_argument("--tiny", type=Path, required=True, help="the bundled model")
    parser.add_argument("--vgg", type=Path, required=True, help="weights of a VGG16, see README.md")
    parser.add_argument("--start", type=Path, help="pipeline of the same model and sizes")
    parser.add_argument("--config", type=json.loads, default={}, help="JSON: other sizes, or an ablation")
    parser.add_argument(
        "--steps", type=int, help="end after so many steps, whatever the minutes: for comparisons"
    )
    parser.add_argument(
        "--losses-from", type=float, default=0.75, help="share of the whole that only imitates"
    )
    parser.add_argument("--imitation-weight", type=float, default=0.3, help="beside the losses")
    parser.add_argument("--shuffles", type=int, choices=(0, 1), default=1, help="of Mamba-ST's style tokens")
    parser.add_argument("--crop", type=int, default=192)
    add_run_options(parser, minutes=60, lr=1e-3, batch=4)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    device = args.device
    tiny = Imitated(args.tiny).to(device, memory_format=torch.channels_last)
    kind, pipeline = MODELS[args.model]
    model = kind(**{**SIZES[args.model], "styled_decoder": tiny.options(), **args.config})
    start = model if args.start is None else pipeline.from_pretrained(args.start).model
    rest = {name: p for name, p in start.state_dict().items() if not name.startswith("decoder.")}
    model.load_state_dict(rest | {f"decoder.{name}": p for name, p in tiny.decoder.state_dict().items()})
    model.style_tower.load_state_dict(tiny.tower.state_dict())
    model.style_tower.requires_grad_(False).eval()
    model.decoder.grain_low.drifts = model.decoder.grain_mid.drifts = True
    model = model.to(device, memory_format=torch.channels_last)
    options = {"shuffles": args.shuffles} if args.model == "mamba-st" else {}

    lines = (args.pairs / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in lines]
    contents = {
        file: read_at_teacher_size(args.data / file) for file in sorted({pair["photo"] for pair in pairs})
    }
    artworks = {art: read(args.data / art, STYLE_SIDE) for art in sorted({pair["artwork"] for pair in pairs})}
    usable = [pair for pair in pairs if min(contents[pair["photo"]].shape[-2:]) > args.crop]
    vgg, _ = load_teacher(args.vgg, device=device)
    some = random.Random(0).sample(sorted(artworks), min(40, len(artworks)))

    def maps_of(images: Tensor) -> dict[str, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bfloat16):
            return vgg(images)

    features = ScaledMaps(maps_of, [artworks[a][None].to(device).float() / 255 for a in some])
    args.out.mkdir(parents=True, exist_ok=True)
    known_by = "\n".join(artworks).encode() + args.vgg.read_bytes()
    digest = hashlib.sha256(known_by).hexdigest()[:12]
    cache = args.pairs / f"moments-{digest}.pt"  # minutes of work, the same for every model
    if not cache.exists():
        found = {art: features.moments(rgb[None].to(device).float() / 255) for art, rgb in artworks.items()}
        save_whole(found, cache)
    moments = torch.load(cache, map_location=device, weights_only=True)

    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, betas=(0.9, 0.99))
    average = AveragedModel(model, avg_fn=lambda kept, new, n: kept.lerp(new, max(0.003, 10 / (n + 10))))
    run = TimedRun(
        args.out / "state.pt",
        args.minutes,
        optimizer,
        steps=args.steps,
        warm_up=100,
        least=0.02,
        log_every=50,
    )
    if run.kept:
        model.load_state_dict(run.kept["model"])
        average.load_state_dict(run.kept["average"])
    for step in run:
        by_losses = min(1.0, max(0.0, run.share - args.losses_from) * 20)  # fades in over a twentieth
        model.decoder.requires_grad_(by_losses > 0)  # it knows already what the rest has to learn first
        rng = random.Random(f"{args.seed} {step}")
        torch.manual_seed(rng.randrange(2**31))  # of the shuffles
        chosen = rng.choices(usable, k=args.batch)
        names = [pair["artwork"] for pair in chosen]
        photos = [crop(contents[pair["photo"]], args.crop, rng) for pair in chosen]
        photos = [photo.flip(-1) if rng.random() < 0.5 else photo for photo in photos]
        styles = [crop(artworks[name], STYLE_CROP, rng) for name in names]
        photos, styles = (
            torch.stack(side).to(device).float().div_(255).contiguous(memory_format=torch.channels_last)
            for side in (photos, styles)
        )

        with torch.autocast(device.type, torch.bfloat16, enabled=args.bfloat16):
            plain = model.encode_content(photos)
            fused = model.fuse(plain, model.encode_style(styles), **options)
            terms = {"imitation": imitation(model, plain, fused, tiny, photos)}
            result = model.decode(fused).float() if by_losses else None
        loss = terms["imitation"] * (1 - by_losses * (1 - args.imitation_weight))
        if by_losses:
            got = features(at_view(result))
            with torch.no_grad():
                of_photo = features(at_view(photos))
            of_style = [torch.cat(tap) for tap in zip(*(moments[name] for name in names), strict=True)]
            terms["content"] = content_loss(got[CONTENT_TAPS], of_photo[CONTENT_TAPS])
            terms["style"] = features.style_loss(got, of_style)
            pixels = maps = 0.0
            if step % IDENTITY_EVERY == 0:
                same = torch.stack([side[0, :, :IDENTITY_CROP, :IDENTITY_CROP] for side in (photos, styles)])
                with torch.autocast(device.type, torch.bfloat16, enabled=args.bfloat16):
                    again = model(same, same, **options).float()
                pixels, maps = identity_losses(again[:1], same[:1], again[1:], same[1:], features)
                terms["identity"], terms["identity_maps"] = pixels, maps
            total = image_style_total(terms["content"], terms["style"], pixels, maps, WEIGHTS)
            loss = loss + by_losses * total
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        run.log(**terms)
        if run.due():
            save(pipeline(average.module), args, f"samples-{round(run.spent / 60):03}.png")
            run.save(model=model.state_dict(), average=average.state_dict())
    run.save(model=model.state_dict(), average=average.state_dict())
    save(pipeline(average.module), args, "samples.png")


def save(pipe: SaMamPipeline | MambaSTPipeline, args: argparse.Namespace, sheet: str) -> None:
    """The pipeline, and three held-out photos in six unseen styles, 256 px."""
    pipe.set_progress_bar_config(disable=True)
    pipe.model.eval()
    photos = [read(args.data / name, 256)[:, :256, :256] / 255 for name in HELD_OUT["photos"][:3]]
    paintings = [row["file"] for row in read_manifest(args.data, "eval") if row["role"] == "style"][::2]
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
