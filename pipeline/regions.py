"""Several styles in one picture, each in its own region.

Responsible for painting the regions one over the other. What a mask and a prompt may be is that of the pipeline.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from .images import Content, Picture, collect, read_images, read_mask
from .masks import feather_mask
from .prompts import Prompt
from .style_mixing import composite

if TYPE_CHECKING:
    from .pipeline_stylemamba import StyleMambaPipeline


@dataclass(frozen=True)
class Region:
    """A mask, 1 where to stylize, and what to paint there: a prompt, or loaded styles by name or by name and weight.

    settings: further arguments of the pipeline for this region alone, such as `strength`.
    """

    mask: Picture
    prompt: Prompt | None = None
    style: str | dict[str, float] | None = None
    settings: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.style is None):
            raise ValueError(
                f"a region has prompt {self.prompt!r:.60} and style {self.style!r:.60}, wanted one of them."
            )


def stylize_regions(
    pipe: "StyleMambaPipeline",
    image: Picture,
    regions: Sequence[Region],
    *,
    feather: float = 0.0,
    output_type: str = "pil",
    **settings,
):
    """One picture with every region in its own style; later regions lie over earlier ones, and what no mask covers stays
    as it is, to the bit. Returns pictures in the form of `output_type`, as the pipeline does.

    feather: pixels over which each region fades out inside its edge. settings: arguments of the pipeline for all regions.
    """
    contents = read_images(image)
    if len(contents) != 1:
        raise ValueError(f"got {len(contents)} pictures, wanted one: regions belong to a picture.")
    if not regions:
        raise ValueError("regions is empty, wanted at least one Region(mask, prompt).")
    content = contents[0]
    masks = [read_mask(region.mask, [content.size], content.rgb.device)[0] for region in regions]
    for number, mask in enumerate(masks, start=1):
        if not mask.any():
            raise ValueError(
                f"the mask of region {number} is empty (0 everywhere): paint it white where to stylize."
            )

    in_use, result = (dict(pipe.styles.active), pipe.styles.mix), content.rgb
    try:
        for region, mask in zip(regions, masks, strict=True):
            if region.style is None:
                pipe.styles.active = {}
            elif isinstance(region.style, str):
                pipe.set_styles(region.style)
            else:
                pipe.set_styles(list(region.style), list(region.style.values()))
            painted = pipe(
                content.rgb, region.prompt, output_type="pt", **{**settings, **region.settings}
            ).images
            result = composite(result, torch.as_tensor(painted).to(result), feather_mask(mask, feather))
    finally:
        pipe.styles.active, pipe.styles.mix = in_use
    return collect([Content(result, content.alpha)], output_type)
