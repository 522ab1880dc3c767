"""Ways to ask for a style: what people may type who mean one label of the training set.

Made of the label and its captions; nothing that an evaluation will ask is among them (`held_out.json`, and the prompts of
`benchmarks/prompts.json`).
"""

import json
import random
from pathlib import Path

_HERE = Path(__file__).parent

_TEMPLATES = (
    "{}",
    "{} style",
    "in the style of {}",
    "{} art",
    "a picture in the style of {}",
    "make it look like {}",
    "as {}",
    "{}, highly detailed",
    "a photo turned into {}",
    "{} look",
    "the look of {}",
    "rendered as {}",
)
_ARTICLES = ("a ", "an ", "the ")
_BY = (" by ", " of ")


def reserved_texts() -> set[str]:
    """What no training may read, in lower case."""
    held_out = json.loads((_HERE / "held_out.json").read_text(encoding="utf-8"))["captions"]
    prompts = json.loads((_HERE.parent / "benchmarks" / "prompts.json").read_text(encoding="utf-8"))
    asked = [text for entry in prompts for text in (entry["prompt"], entry["reworded"])]
    return {text.lower() for text in [*held_out, *asked]}


def wordings(label: str, captions: list[str], count: int = 32) -> list[str]:
    """`count` texts for a label: its captions as they are, in templates, cut short and joined; the same ones each time."""
    reserved, rng = reserved_texts(), random.Random(label)
    captions = [caption for caption in captions if caption.lower() not in reserved]
    short = [
        caption.removeprefix(article)
        for caption in captions
        for article in _ARTICLES
        if caption.startswith(article)
    ]
    by_whom = (caption.split(by)[1] for caption in captions for by in _BY if by in caption[:30])
    names = [label, *dict.fromkeys(by_whom)]  # a set has another order in each process
    texts = dict.fromkeys([label, *captions])
    for _ in range(100 * count):
        if len(texts) >= count:
            break
        kind = rng.random()
        if kind < 0.4:
            text = rng.choice(_TEMPLATES).format(rng.choice([*names, label]))
        elif kind < 0.7:
            text = rng.choice(_TEMPLATES).format(rng.choice([*captions, *short] or names))
        elif kind < 0.85:
            text = f"{rng.choice(names)}, {rng.choice([*short, *captions] or names)}"
        else:
            words = rng.choice([*captions, label]).split()
            text = " ".join(word for word in words if rng.random() > 0.25)
        if text.strip() and text.lower() not in reserved:
            texts[text] = None
    return list(texts)[:count]
