"""Does the model know what popular words mean?  Words to styles, without a picture.

    python benchmarks/words.py DATA --model tiny

popular_prompts.json has prompts as people type them into tools like this one, most of them names that are not among the model's
styles ("picasso", "film noir"), each with the styles that a picky reader would accept for it by their looks. It was written
from the list of styles alone, without sight of any training text. Of its prompts six happen to be a style's name or a description,
which training reads; the blend of two towers that is bundled was chosen by them among other texts. A prompt counts as understood
if the style that the memory recalls first is one of them. DATA as for quality.py: its manifest names the styles of the memory.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from stylemamba import StyleMambaPipeline
from stylemamba.pipeline.metrics import bootstrap_interval

sys.path.append(str(Path(__file__).parents[1] / "training"))
from train_text_tower import trained_labels

PROMPTS = Path(__file__).with_name("popular_prompts.json")


@torch.no_grad()
def recalled(pipe: StyleMambaPipeline, prompts: list[str]) -> torch.Tensor:
    """-> (B, N), how much of each style of the memory."""
    embeds = F.normalize(pipe.encode_prompt(prompts, recall=False).float(), dim=-1)
    memory = pipe.style_memory
    return (embeds @ memory.styles.float().T / memory.config.temperature).softmax(-1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="tiny", help="a bundled name, a folder or a Hub id")
    parser.add_argument("--misses", type=int, default=20, help="how many to print")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    pipe = StyleMambaPipeline.from_pretrained(args.model)
    labels = trained_labels(args.data)
    if len(labels) != len(pipe.style_memory.styles):
        parser.error(
            f"{args.data} names {len(labels)} styles, and the memory has {len(pipe.style_memory.styles)}"
        )
    asked = json.loads(PROMPTS.read_text(encoding="utf-8"))
    shares = recalled(pipe, list(asked))
    order = shares.argsort(1, descending=True)
    first = torch.tensor([labels[row[0]] in asked[p] for p, row in zip(asked, order, strict=True)]).double()
    five = torch.tensor(
        [any(labels[i] in asked[p] for i in row[:5]) for p, row in zip(asked, order, strict=True)]
    )
    low, high = bootstrap_interval(first, args.seed)
    print(
        f"{args.model}: {len(asked)} popular prompts, understood {first.mean():.1%} [{low:.1%}, {high:.1%}], "
        f"among the five recalled first {five.double().mean():.1%}; by chance {chance(asked, len(labels)):.1%}"
    )
    missed = [(p, row) for p, row, hit in zip(asked, order, first, strict=True) if not hit]
    for prompt, row in random.Random(args.seed).sample(missed, min(args.misses, len(missed))):
        print(f"  {prompt}: {labels[row[0]]}, {labels[row[1]]}; accepted: {', '.join(asked[prompt])}")


def chance(asked: dict[str, list[str]], labels: int) -> float:
    return sum(len(accepted) for accepted in asked.values()) / len(asked) / labels


if __name__ == "__main__":
    main()
