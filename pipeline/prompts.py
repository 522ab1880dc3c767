"""The forms a prompt may have: one text, several, and weighted mixtures of texts. Knows nothing of embeddings."""

from collections.abc import Sequence

WeightedPrompts = Sequence[tuple[str, float]]
Prompt = str | WeightedPrompts


def as_mixtures(prompt: Prompt | list[Prompt]) -> list[list[tuple[str, float]]]:
    """Every form of `prompt` -> one list of (text, weight) for each row."""
    if isinstance(prompt, str):
        return [[(prompt, 1.0)]]
    if not isinstance(prompt, (list, tuple)) or not prompt:
        raise ValueError(
            f"prompt is {prompt!r:.80}, wanted a string, a list of strings or [(prompt, weight), ...]."
        )
    if all(_is_weighted(item) for item in prompt):
        return [[(text, float(weight)) for text, weight in prompt]]
    mixtures = []
    for item in prompt:
        if isinstance(item, str):
            mixtures.append([(item, 1.0)])
        elif isinstance(item, (list, tuple)) and item and all(_is_weighted(pair) for pair in item):
            mixtures.append([(text, float(weight)) for text, weight in item])
        else:
            raise ValueError(
                f"prompt has {item!r:.80}, wanted a string or a list of (prompt, weight) in its place."
            )
    return mixtures


def _is_weighted(item) -> bool:
    return (
        isinstance(item, (list, tuple))
        and len(item) == 2
        and isinstance(item[0], str)
        and isinstance(item[1], (int, float))
    )


def describe(mixture: WeightedPrompts) -> str:
    if len(mixture) == 1:
        return mixture[0][0]
    return " + ".join(f"{weight:g} {text}" for text, weight in mixture)
