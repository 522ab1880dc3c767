"""StyleMamba Blend Styles: several styles in one, by weight. A style of weight 0 is not even loaded."""

import math
from dataclasses import replace

from . import host
from .host import io
from .style_mix import StyleMix

_MOST = 8
_OPEN = object()  # an input that nothing is connected to; None is one whose node was not run yet


class StyleMambaBlendStyles(io.ComfyNode):
    """Two styles in every host, so that a workflow opens in all of them; a third and more by chaining the node, or in
    slots that grow where the host has such."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [
            _style(
                "style_a",
                "A style, the blend of another of these nodes, or the words of a prompt from a String node.",
            ),
            _weight("weight_a"),
            _style("style_b", "A style to mix with it, or words.", optional=True),
            _weight("weight_b"),
            io.Combo.Input(
                "mix",
                options=["linear", "slerp"],
                default="linear",
                optional=True,
                tooltip="How directions are mixed: along a straight line, or along the sphere (slerp). In a chain the last node "
                "decides.",
            ),
        ]
        if host.HAS_AUTOGROW:
            slot = _style("style", "One more style to mix in, or words.", optional=True)
            inputs += [
                io.String.Input(
                    "more_weights",
                    default="",
                    optional=True,
                    tooltip="Weights of the further styles, in order, such as: 0.5, 0.25. Those left out are 1.",
                ),
                io.Autogrow.Input(
                    "more",
                    template=io.Autogrow.TemplatePrefix(slot, prefix="style", min=0, max=_MOST),
                    optional=True,
                    tooltip="Further styles.",
                ),
            ]
        return host.schema(
            node_id="StyleMambaBlendStyles",
            display_name="StyleMamba Blend Styles",
            category="StyleMamba",
            description="Mixes styles or prompts by weight. Chain it to mix more. A style of weight 0 is not loaded at all.",
            search_aliases=[
                "mix styles", "combine styles", "style interpolation", "weighted styles", "weighted prompts", "slerp",
            ],
            inputs=inputs,
            outputs=[host.Style.Output(display_name="style", tooltip="The blend, usable like any style.")],
        )  # fmt: skip

    @classmethod
    def check_lazy_status(
        cls,
        weight_a: float,
        weight_b: float,
        style_a=_OPEN,
        style_b=_OPEN,
        mix="linear",
        more_weights="",
        more=None,
    ):
        # To this question alone a host with slots that grow gives each of them as (style, id), and no slots as ({}, "more").
        grown = more.values() if isinstance(more, dict) else ()
        more = {name: style for style, name in grown}
        slots = _slots(style_a, weight_a, style_b, weight_b, more_weights, more)
        return [name for name, style, weight in slots if style is None and weight]

    @classmethod
    def execute(
        cls,
        weight_a: float,
        weight_b: float,
        style_a=None,
        style_b=None,
        mix="linear",
        more_weights="",
        more=None,
    ) -> io.NodeOutput:
        slots = _slots(style_a, weight_a, style_b, weight_b, more_weights, more)
        parts = [_read(style).scaled(weight) for _, style, weight in slots if style is not None and weight]
        if not parts:
            raise ValueError(
                "all weights are 0 or no style is connected: connect a style and give it a weight."
            )
        return io.NodeOutput(replace(sum(parts[1:], start=parts[0]), mode=mix))


def _style(name: str, tooltip: str, optional: bool = False) -> io.MultiType.Input:
    return io.MultiType.Input(name, [host.Style, io.String], optional=optional, lazy=True, tooltip=tooltip)


def _read(style: StyleMix | str) -> StyleMix:
    if isinstance(style, str):
        if not style.strip():
            raise ValueError("the words of a style are empty: write a prompt, or give them the weight 0.")
        return StyleMix.of(style)
    return style


def _weight(name: str) -> io.Float.Input:
    return io.Float.Input(
        name,
        default=0.5,
        min=-1.5,
        max=1.5,
        step=0.05,
        tooltip="Its share. Of fitted styles, a sum below 1 is weaker; of words and pictures only the ratio counts. 0 leaves it "
        "out, less than 0 leads away from it.",
    )


def _slots(style_a, weight_a, style_b, weight_b, more_weights: str, more: dict | None):
    """(id of the input, style or None, weight) of every slot."""
    more = more or {}
    weights = _read_weights(more_weights)
    weights += [1.0] * (len(more) - len(weights))
    return [
        ("style_a", style_a, weight_a),
        ("style_b", style_b, weight_b),
        *((name, style, weight) for (name, style), weight in zip(more.items(), weights, strict=False)),
    ]


def _read_weights(text: str) -> list[float]:
    try:
        weights = [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        weights = [math.nan]
    if not all(map(math.isfinite, weights)):
        raise ValueError(
            f"more_weights is {text!r:.120}, wanted numbers with commas between them, such as: 0.5, 0.25."
        )
    return weights
