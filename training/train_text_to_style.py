"""Teaches a SaMam to read prompts: a small head from a text tower to what SaMam sees in artworks.

    python training/train_text_to_style.py DATA ../weights/samam-tiny --text ../weights/tiny -o runs/samam-words

Nothing but the head is trained, by the artworks' style embeddings alone, so that it takes a few minutes on one core. A
label's words go to the one of its artworks whose embedding is nearest to their mean: between two artworks may lie a style
that no picture has. Writes the pipeline with its text tower and head, in half precision, and prints how near the held-out
captions come.
"""

import argparse
import json
import math
import random
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from manifest import HELD_OUT, read_manifest
from pictures import read_unit
from torch import Tensor
from train_stylizer import embed_labels
from transformers import AutoTokenizer, SiglipTextModel

from stylemamba import SaMamPipeline
from stylemamba.pipeline.siglip_encoder import SiglipEncoder
from stylemamba.pipeline.text_to_style import TextToStyle


@torch.no_grad()
def embed_artworks(pipe: SaMamPipeline, data: Path, each: int) -> dict[str, Tensor]:
    """Label -> style embeddings of up to `each` of its artworks (N, R, 3, 3)."""
    artworks = defaultdict(list)
    for row in read_manifest(data, "style"):
        artworks[row["label"]].append(data / row["file"])
    side, found = pipe.config.style_size, {}
    for number, label in enumerate(sorted(artworks), 1):
        files = random.Random(label).sample(artworks[label], min(each, len(artworks[label])))
        pictures = [read_unit(file, side) for file in files]
        found[label] = torch.cat([pipe.encode_style([(one, 1.0)], (side, side))[0][0] for one in pictures])
        if number % 50 == 0:
            print(f"artworks of {number} of {len(artworks)} labels", flush=True)
    return found


def report(head: TextToStyle, encoder: SiglipEncoder, data: Path, wanted: Tensor, labels: list[str]) -> None:
    """How near captions that no training read come to the artwork of their label, beside those of other labels."""
    held_out, seen = set(HELD_OUT["captions"]), {}
    for row in read_manifest(data, "style"):
        seen |= {caption: row["label"] for caption in row["captions"] if caption in held_out}
    with torch.no_grad():
        got = head.head(encoder.embed_texts(list(seen)))  # standardised, (N, 9 R)
    cosines = F.normalize(got, dim=1) @ F.normalize(wanted, dim=1).T  # (N, K)
    own = torch.tensor([labels.index(label) for label in seen.values()])
    of_own = cosines.gather(1, own[:, None])
    place = (cosines > of_own).sum(1)
    print(
        f"{len(seen)} held-out captions: cosine to the own label's artwork {of_own.mean():.3f}, to all {cosines.mean():.3f}; "
        f"nearest {(place < 1).float().mean():.1%}, in the nearest five {(place < 5).float().mean():.1%} of {len(labels)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("samam", type=Path, help="folder of a trained SaMamPipeline")
    parser.add_argument("--text", type=Path, required=True, help="folder with text_encoder/ and tokenizer/")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--artworks", type=int, default=8, help="of each label")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    model = SaMamPipeline.from_pretrained(args.samam, dtype=torch.float32).model
    pipe = SaMamPipeline(model, SaMamPipeline.load_config(args.samam)["style_size"])
    styles = embed_artworks(pipe, args.data, args.artworks)
    texts = embed_labels(args.data, args.text)  # label -> (wordings, E)
    labels = sorted(texts)
    everything = torch.cat(list(styles.values()))  # (N, R, 3, 3)
    center, spread = everything.mean(0), everything.std(0).clamp(min=1e-3)
    nearest = {
        label: (some - some.mean(0)).square().sum((1, 2, 3)).argmin() for label, some in styles.items()
    }
    chosen = torch.stack([styles[label][nearest[label]] for label in labels])
    wanted = ((chosen - center) / spread).flatten(1)  # (K, 9 R)

    head = TextToStyle(next(iter(texts.values())).shape[1], len(center))
    head.center.copy_(center)
    head.spread.copy_(spread)
    optimizer = torch.optim.AdamW(head.parameters(), lr=args.lr, weight_decay=0.01)
    rng = random.Random(args.seed)
    for step in range(args.steps):
        optimizer.param_groups[0]["lr"] = args.lr * (0.5 + 0.5 * math.cos(math.pi * step / args.steps))
        batch = rng.choices(range(len(labels)), k=args.batch)
        # Jittered by a second wording, so that the space between them is known.
        first, second = (torch.stack([rng.choice(texts[labels[i]]) for i in batch]) for _ in range(2))
        embeds = F.normalize(torch.lerp(first, second, torch.rand(args.batch, 1) * 0.5), dim=1)
        got, goal = head.head(embeds), wanted[batch]
        loss = F.mse_loss(got, goal) + (1 - F.cosine_similarity(got, goal)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 500 == 0:
            print(f"{step + 1} steps, loss {loss.item():.3f}", flush=True)

    head.eval()
    tower = SiglipTextModel.from_pretrained(args.text / "text_encoder").eval()
    tokenizer = AutoTokenizer.from_pretrained(args.text / "tokenizer")
    report(head, SiglipEncoder(tower, tokenizer), args.data, wanted, labels)
    whole = SaMamPipeline(model, pipe.config.style_size, tower, tokenizer, head)
    for part in (model, tower, head):
        part.half()
    whole.save_pretrained(args.out)
    for file in args.out.glob("*/config.json"):  # not the folders of the machine it was trained on
        config = json.loads(file.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    print(f"{size / 1e6:.1f} MB in all")


if __name__ == "__main__":
    main()
