"""Wordings of styles, written by a small grammar: what the text tower reads in training.

style_vocabulary.json is the grammar: lists of words and phrases, where "{medium}" stands for any entry of the list
"medium". A style is one expansion of "style"; its wordings say the same with other words around it or with a subject
("a cat in stained glass"), so that a tower can learn what belongs to the style and what does not.
"""

import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

VOCABULARY = Path(__file__).with_name("style_vocabulary.json")
SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Wording:
    text: str
    style: str  # the part of it that names the style


class StyleCorpus:
    """`captions` and `words` fill the lists of these names. No text or style that is in `held_out` is written; a short
    one can still be part of a longer text that the grammar makes of other words."""

    def __init__(
        self,
        vocabulary: dict[str, list[str]],
        captions: Sequence[str] = (),
        words: Sequence[str] = (),
        held_out: Iterable[str] = (),
    ) -> None:
        self.held_out = {text.casefold() for text in held_out}
        self.lists = {**vocabulary, "caption": self.allowed(captions), "word": self.allowed(words)}
        # Templates that ask for an empty list cannot be filled.
        empty = {name for name, entries in self.lists.items() if not entries}
        for name, entries in self.lists.items():
            self.lists[name] = [entry for entry in entries if not empty.intersection(SLOT.findall(entry))]

    def allowed(self, texts: Iterable[str]) -> list[str]:
        return [text for text in texts if text.casefold() not in self.held_out]

    def expand(self, template: str, rng: random.Random, **fixed: str) -> str:
        def fill(slot: re.Match) -> str:
            name = slot[1]
            return fixed[name] if name in fixed else self.expand(rng.choice(self.lists[name]), rng)

        return SLOT.sub(fill, template)

    def wordings(self, styles: int, each: int, seed: int = 0) -> list[Wording]:
        """`styles` different styles, each alone and in up to `each` other wordings; all texts are distinct.

        A longer corpus begins with the shorter one of the same seed.
        """
        rng, seen, result = random.Random(seed), set(self.held_out), []
        while styles:
            style = self.expand("{style}", rng)
            if style.casefold() in seen:
                continue
            styles -= 1
            texts = [style]
            for i in range(each):  # every second one has a subject
                template = rng.choice(self.lists["wording_with_subject" if i % 2 else "wording"])
                texts.append(self.expand(template, rng, style=style))
            for text in texts:
                if text.casefold() not in seen:
                    seen.add(text.casefold())
                    result.append(Wording(text, style))
        return result

    def sentences(self, count: int, seed: int = 0) -> list[Wording]:
        """`count` different sentences, as a person might put it who knows no such thing as a caption.

        What fills a template's only slot is the style of it; with more slots a sentence stands for itself.
        """
        rng, seen, result = random.Random(seed), set(self.held_out), []
        while len(result) < count:
            template = rng.choice(self.lists["sentence"])
            slots = SLOT.findall(template)
            if len(slots) == 1:
                style = self.expand(f"{{{slots[0]}}}", rng)
                text = self.expand(template, rng, **{slots[0]: style})
            else:
                style = text = self.expand(template, rng)
            if not {text.casefold(), style.casefold()} & seen:
                seen.add(text.casefold())
                result.append(Wording(text, style))
        return result


def read_vocabulary(file: Path = VOCABULARY) -> dict[str, list[str]]:
    return json.loads(file.read_text(encoding="utf-8"))


def strings(value: object) -> Iterable[str]:
    """Every string in a JSON value, at any depth, but for what names a row's label and kind."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in ("label", "kind"):
                yield from strings(item)


def held_out_strings(*files: Path) -> set[str]:
    """What the evaluation keeps for itself; files that are not there hold out nothing."""
    texts = (file.read_text(encoding="utf-8") for file in files if file.exists())
    return {string for text in texts for string in strings(json.loads(text))}
