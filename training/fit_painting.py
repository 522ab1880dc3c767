"""Fits one style file of the starter model to what a teacher makes of a painting.

    python training/fit_painting.py VAE PAIRS PAINTING -o STYLE.safetensors --title "The Great Wave" --minutes 8

VAE is the autoencoder's folder, PAIRS what teach_pairs.py wrote, PAINTING the name of a folder in it. Trains a fresh
`tiny` fusion and the decoder, from the same loss as the autoencoder's. No words are involved: the embedding of
the style is a fixed vector, and the style is applied without a prompt.
"""

import argparse
import math
import random
import time
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from pictures import picture_files, read
from PIL import Image
from torch import Tensor
from train_autoencoder import picture_distance

from stylemamba import Style, StyleFusion
from stylemamba.pipeline.images import to_pil
from stylemamba.pipeline.latents import encode_latents, unscale_latents
from stylemamba.pipeline.style import describe_component, library_versions, timestamp
from stylemamba.pipeline.style_decoder import StyleDecoder

COND_DIM = 8


def starter_fusion(vae: AutoencoderTiny) -> StyleFusion:
    """The fusion that the starter pipeline holds, and every fit begins with."""
    torch.manual_seed(0)
    return StyleFusion.from_preset("tiny", latent_channels=vae.config.latent_channels, cond_dim=COND_DIM)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("vae", type=Path)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("painting")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--title", required=True)
    parser.add_argument("--source", required=True, help="where the painting is from, and its licence")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    vae = AutoencoderTiny.from_pretrained(args.vae).requires_grad_(False).eval()
    photos = [read(f, _short(f)) for f in picture_files(args.pairs / "photos")]
    targets = [read(f, _short(f)) for f in picture_files(args.pairs / args.painting)]
    fusion, decoder = starter_fusion(vae), StyleDecoder(vae)
    decoder.changes = {name: change.requires_grad_() for name, change in decoder.full_changes().items()}
    optimizer = torch.optim.Adam([*fusion.parameters(), *decoder.changes.values()], lr=args.lr)
    embedding = torch.eye(COND_DIM)[:1]  # one for every style: each has a fusion of its own

    def stylize(images: Tensor) -> Tensor:
        latents = encode_latents(vae, images)
        return decoder(unscale_latents(vae, fusion(latents, embedding.expand(len(images), -1))))

    losses, step, begin = [], 0, time.monotonic()
    while (spent := time.monotonic() - begin) < 60 * args.minutes:
        for group in optimizer.param_groups:
            group["lr"] = args.lr * max(0.01, 0.5 + 0.5 * math.cos(math.pi * spent / (60 * args.minutes)))
        rng = random.Random(f"{args.seed} {step}")
        pairs = [
            _crop(photos[i], targets[i], args.crop, rng)
            for i in rng.choices(range(len(photos)), k=args.batch)
        ]
        images, wanted = (torch.stack(side).float() / 127.5 - 1 for side in zip(*pairs, strict=True))
        loss = picture_distance(stylize(images), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(round(loss.item(), 5))
        step += 1
        if step % 50 == 0:
            print(
                f"{args.painting}: {step} steps, {spent / 60:.1f} min, loss {sum(losses[-50:]) / 50:.4f}",
                flush=True,
            )

    with torch.no_grad():
        sample = stylize(photos[0][None, :, :256, :256].float() / 127.5 - 1)
    info = {
        "title": args.title,
        "prompt": "",
        "created": timestamp(),
        "seed": args.seed,
        "fitted_to": args.source,
        "recipe": f"training/fit_painting.py, {step} steps of batch {args.batch}, crops of {args.crop} px, lr {args.lr}",
        "losses": {"total": losses[::10]},
        "base": {"vae": describe_component(vae)},
        "versions": library_versions(),
    }
    config = {k: v for k, v in fusion.config.items() if not k.startswith("_")}
    weights = {k: v.detach() for k, v in fusion.state_dict().items()}
    changes = {k: v.detach() for k, v in decoder.changes.items()}
    Style(embedding[0], config, weights, changes, info, to_pil(sample / 2 + 0.5)).save(args.out)


def _short(file: Path) -> int:
    with Image.open(file) as image:
        return min(image.size)


def _crop(photo: Tensor, target: Tensor, size: int, rng: random.Random) -> tuple[Tensor, Tensor]:
    top, left = rng.randint(0, photo.shape[-2] - size), rng.randint(0, photo.shape[-1] - size)
    flip = rng.random() < 0.5
    crops = (image[:, top : top + size, left : left + size] for image in (photo, target))
    return tuple(crop.flip(-1) if flip else crop for crop in crops)


if __name__ == "__main__":
    main()
