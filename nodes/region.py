"""StyleMamba Region: where in a picture which style goes. Several of them are chained."""

from dataclasses import dataclass

from torch import Tensor

from . import host
from .host import io
from .style_mix import StyleMix


@dataclass(frozen=True, eq=False)
class Region:
    """mask: MASK, or None for the whole picture. style: in place of the prompt. strength: part of what the whole picture gets."""

    mask: Tensor | None
    prompt: str
    style: StyleMix | None
    strength: float = 1.0


class StyleMambaRegion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="StyleMambaRegion",
            display_name="StyleMamba Region",
            category="StyleMamba",
            description="A part of the picture with a style of its own, for the regions of StyleMamba Stylize. Chain it for "
            "several; later ones lie over earlier ones, and what no mask covers stays as it is.",
            search_aliases=[
                "regional prompt",
                "area style",
                "masked styles",
                "local style",
                "attention couple",
            ],
            inputs=[
                io.Mask.Input(
                    "mask",
                    tooltip="1 where this style goes. Another size is resized; an empty one is refused.",
                ),
                io.String.Input(
                    "prompt",
                    default="stained glass",
                    multiline=True,
                    tooltip="The style in words, such as: an ink drawing on paper. Not read when a style is connected.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="The part of the strength of StyleMamba Stylize that this region gets: 1 is all of it.",
                ),
                host.Style.Input(
                    "style",
                    optional=True,
                    tooltip="A fitted, loaded or blended style, in place of the prompt.",
                ),
                host.Regions.Input(
                    "regions",
                    optional=True,
                    tooltip="Further regions, from another of these nodes. This one lies over them.",
                ),
            ],
            outputs=[
                host.Regions.Output(
                    display_name="regions",
                    tooltip="For StyleMamba Stylize, or for another StyleMamba Region.",
                )
            ],
        )

    @classmethod
    def execute(cls, mask, prompt: str, strength: float, style=None, regions=()) -> io.NodeOutput:
        if not mask.any():
            raise ValueError(
                "the mask of this region is empty (0 everywhere): draw it in the mask editor of Load Image, or connect "
                "another one."
            )
        if style is None and not prompt.strip():
            raise ValueError(
                "the prompt of this region is empty and no style is connected: write a prompt or connect a style."
            )
        return io.NodeOutput((*(regions or ()), Region(mask, prompt, style, strength)))
