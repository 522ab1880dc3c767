"""Trains the image tower of the bundled model: artworks go where the text tower puts their captions.

    python training/train_image_encoder.py DATA OUT --text TOWER --perceptual NET --minutes 3

SigLIP's loss: every pair of a picture and a caption in a batch is asked whether they belong together. The text tower
and the feature network stay as they are; statistics of a few crops of every artwork are taken once, so only the head is
trained. Prints how often the label of a left-out artwork is among the nearest five, and writes OUT with the learnt
scale and bias in OUT/logits.json. Runs again from OUT/state.pt if it is there.
"""

import argparse
import json
import math
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from manifest import read_manifest
from pictures import read_unit
from timed_run import TimedRun, add_run_options, save_whole
from torch import Tensor
from train_stylizer import embed_labels

from stylemamba.pipeline.perceptual import VGGFeatures
from stylemamba.pipeline.statistics_encoder import StatisticsEncoder

CROPS = 3  # of every artwork, at several sizes


@torch.no_grad()
def statistics_of(encoder: StatisticsEncoder, file: Path, rng: random.Random) -> Tensor:
    """The whole picture squeezed into the square the tower sees, as in use, and some crops: (1 + CROPS, W)."""
    side, image = encoder.config.image_size, read_unit(file, 320, encoder.device)
    views = [F.interpolate(image, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)]
    for _ in range(CROPS):
        size = rng.randint(side, 320)
        top, left = (rng.randint(0, length - size) for length in image.shape[-2:])
        crop = image[..., top : top + size, left : left + size]
        views.append(F.interpolate(crop, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1))
    return encoder.statistics(torch.cat(views) * 2 - 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="folder with text_encoder/ and tokenizer/")
    parser.add_argument("--perceptual", type=Path, required=True)
    add_run_options(parser, minutes=3, lr=1e-3, batch=128)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    rows = read_manifest(args.data, "style")
    text_space = {
        label: embeds.to(args.device) for label, embeds in embed_labels(args.data, args.text).items()
    }
    labels = sorted(text_space)
    truth = torch.tensor([labels.index(row["label"]) for row in rows], device=args.device)
    counts = truth.bincount()
    left_out = [counts[label].item() >= 5 and rng.random() < 0.1 for label in truth]
    left_out = torch.tensor(left_out, device=args.device)

    perceptual = VGGFeatures.from_pretrained(args.perceptual)
    encoder = StatisticsEncoder(next(iter(text_space.values())).shape[1], perceptual.config.channels)
    encoder.features.load_state_dict(perceptual.state_dict())
    encoder.features.to(memory_format=torch.channels_last)
    encoder.to(args.device)
    cache = args.out / "statistics.pt"
    if cache.exists():
        views = torch.load(cache, map_location=args.device, weights_only=True)
    else:
        views = torch.stack(
            [statistics_of(encoder, args.data / row["file"], rng) for row in rows]
        )  # (N, 1+CROPS, W)
        save_whole(views, cache)
    encoder.center.copy_(views[~left_out].flatten(0, 1).mean(0))
    # What hardly varies says nothing, and would say nonsense once half precision has rounded the mean.
    spread = views[~left_out].flatten(0, 1).std(0)
    varies = (spread > 1e-3) & (spread > 0.01 * encoder.center.abs())
    encoder.spread.copy_(spread.where(varies, 1.0))

    log_scale, bias = (
        torch.tensor(value, device=args.device, requires_grad=True) for value in (math.log(10.0), -5.0)
    )
    groups = [
        {"params": encoder.head.parameters(), "weight_decay": 0.05},
        {"params": [log_scale, bias], "weight_decay": 0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr)
    centres = torch.stack([F.normalize(text_space[label].mean(0), dim=0) for label in labels])  # (K, E)
    # Labels with many artworks are drawn more rarely than their number says, as no prompt is likelier than another.
    chance = (counts.float() ** -0.5)[truth].masked_fill(left_out, 0)
    batch = min(args.batch, int((chance > 0).sum()))

    def embed(statistics: Tensor) -> Tensor:
        return F.normalize(
            encoder.head(((statistics - encoder.center) / encoder.spread).clamp(-5, 5)), dim=-1
        )

    def report() -> None:
        """How often the label of a left-out artwork is found."""
        encoder.eval()
        with torch.no_grad():
            order = (embed(views[left_out, 0]) @ centres.T).argsort(1, descending=True)
            place = (order == truth[left_out][:, None]).float().argmax(1)
        top1, top5 = ((place < k).float().mean().item() for k in (1, 5))
        run.say(f"left out: top-1 {top1:.2f}, top-5 {top5:.2f}")

    run = TimedRun(args.out / "state.pt", args.minutes, optimizer, save_every=30, log_every=500)
    if run.kept:
        encoder.load_state_dict(run.kept["encoder"])
        with torch.no_grad():
            log_scale.copy_(run.kept["log_scale"])
            bias.copy_(run.kept["bias"])
    for step in run:
        rng = random.Random(f"{args.seed} {step}")
        torch.manual_seed(rng.randrange(2**31))
        encoder.train()
        chosen = torch.multinomial(chance, batch)
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bfloat16):
            seen = embed(views[chosen, torch.randint(0, 1 + CROPS, (batch,), device=args.device)]).float()
        options = [text_space[labels[number]] for number in truth[chosen].tolist()]
        words = torch.stack([texts[rng.randrange(len(texts))] for texts in options])  # (batch, E)
        logits = log_scale.exp() * seen @ words.T + bias
        belong = torch.where(truth[chosen][:, None] == truth[chosen][None], 1.0, -1.0)
        loss = -F.logsigmoid(belong * logits).sum() / batch
        # A batch holds few wordings of each label; the middle of a label is worth being near as well.
        loss = loss + (1 - (seen * centres[truth[chosen]]).sum(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss=loss)
        if run.due():
            report()
            run.save(encoder=encoder.state_dict(), log_scale=log_scale.detach(), bias=bias.detach())
    report()
    run.save(encoder=encoder.state_dict(), log_scale=log_scale.detach(), bias=bias.detach())
    encoder.cpu().eval().save_pretrained(args.out)
    logits = {"logit_scale": log_scale.exp().item(), "logit_bias": bias.item()}
    (args.out / "logits.json").write_text(json.dumps(logits) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
