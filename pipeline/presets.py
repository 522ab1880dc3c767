"""Settings that go together for a task: `pipe(photo, prompt, **preset("sketch"))`. Each is a bundle of arguments that the
pipeline has anyway, to start from and to change."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    purpose: str
    settings: dict


PRESETS = {
    "photo": Preset(
        "a light style over a photo: its edges and its light stay",
        {"strength": 0.7, "structure": 0.4, "shading": 0.4},
    ),
    "sketch": Preset(
        "colours a line drawing: every line stays, the grounds between them are painted",
        {"strength": 1.0, "structure": 1.0, "stroke_scale": 1.5},
    ),
    "ui": Preset(
        "a screen or a page: text is found and stays legible, the rest keeps its edges",
        {"strength": 0.8, "structure": 0.4, "protect_text": True},
    ),
    "cinematic": Preset(
        "the colours of the style and none of its texture, as a colourist would grade a film; also as a .cube table",
        {"tone_only": True},
    ),
    "product": Preset(
        "another look for a product, under a mask: its shape and its light stay",
        {"structure": 0.3, "shading": 0.6, "feather": 4.0},
    ),
    "fashion": Preset(
        "a new fabric for a garment, under a mask: its folds and shadows stay",
        {"structure": 0.1, "shading": 0.9, "feather": 4.0},
    ),
}


def preset(name: str) -> dict:
    """Arguments of `StyleMambaPipeline.__call__`."""
    if name not in PRESETS:
        raise ValueError(f"preset is {name!r}, wanted one of {', '.join(PRESETS)}.")
    return dict(PRESETS[name].settings)
