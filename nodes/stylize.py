"""StyleMamba Stylize: picture and words in, stylized picture out, in one node."""

import logging

import torch
from torch import Tensor

from ..pipeline.presets import PRESETS
from . import host
from .host import io
from .model import PictureGuidedModel, default_model
from .pictures import from_image, from_image_or_video, from_mask, to_image
from .region import Region
from .tiles import run_in_batches

logger = logging.getLogger(__name__)

_NO_PRESET = "none"


class StyleMambaStylize(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="StyleMambaStylize",
            display_name="StyleMamba Stylize",
            category="StyleMamba",
            description="Paints a picture, a batch or a video in a style that you describe or connect. Every pixel stays in "
            "place and the size is kept. Runs on a CPU.",
            search_aliases=[
                "style transfer", "text style", "neural style", "artistic", "painting", "CLIPstyler", "video style transfer",
            ],
            inputs=[
                io.MultiType.Input(
                    "image", [io.Image, io.Video], tooltip="A picture, a batch of them, or a video."
                ),
                io.String.Input(
                    "prompt",
                    default="ukiyo-e woodblock print",
                    multiline=True,
                    tooltip="The style in words, such as: an ink drawing on paper. Not read when a style is connected.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=1.5, step=0.05, display_mode=io.NumberDisplay.slider,
                    tooltip="0 is the picture as the model sees it, 1 the style, more exaggerates it.",
                ),
                io.Float.Input(
                    "structure", default=0.0, min=0.0, max=1.0, step=0.05, display_mode=io.NumberDisplay.slider,
                    tooltip="How much of the picture's own edges and fine detail is put back, the finest first.",
                ),
                io.Float.Input(
                    "stroke_scale", default=1.0, min=0.25, max=4.0, step=0.05, display_mode=io.NumberDisplay.slider,
                    tooltip="Size of the strokes: 2 doubles it, 0.5 halves it.",
                ),
                io.Boolean.Input(
                    "preserve_color", default=False, tooltip="Keeps the colours of the picture and takes only light and dark of the style."
                ),
                io.Mask.Input(
                    "mask", optional=True,
                    tooltip="Paints only where the mask is 1; elsewhere the pixels stay untouched. The MASK of Load Image is 1 where "
                    "you drew in the mask editor. Another size is resized.",
                ),
                host.Style.Input("style", optional=True, tooltip="A fitted, loaded or blended style, or one of a picture, in place of the prompt."),
                host.Model.Input(
                    "model", optional=True,
                    tooltip="From StyleMamba Loader, which keeps it loaded. Without one a bundled model is taken. A style from "
                    "a picture by SaMam or Mamba-ST brings its own.",
                ),
                # Later than the others, and behind them: saved workflows know widgets by their place.
                io.Combo.Input(
                    "preset", options=[_NO_PRESET, *PRESETS], default=_NO_PRESET, optional=True,
                    tooltip="Settings for a task. Of the other widgets, those left at their default take its values.",
                ),
                io.Float.Input(
                    "shading", default=0.0, min=0.0, max=1.0, step=0.05, display_mode=io.NumberDisplay.slider, optional=True,
                    tooltip="How much of the picture's broad light and dark is kept, such as the folds of a garment.",
                ),
                io.Boolean.Input(
                    "preserve_palette", default=False, optional=True,
                    tooltip="Paints with the colours of the picture, wherever the style wants them.",
                ),
                io.Boolean.Input(
                    "tone_only", default=False, optional=True,
                    tooltip="Takes the colours of the style and none of its texture, like a colour grade.",
                ),
                io.Boolean.Input(
                    "protect_text", default=False, optional=True, tooltip="Finds text and keeps it legible.",
                ),
                io.Float.Input(
                    "feather", default=0.0, min=0.0, max=500.0, step=1.0, optional=True,
                    tooltip="Pixels over which the style fades out inside the edge of the mask.",
                ),
                io.Float.Input(
                    "deflicker", default=0.0, min=0.0, max=0.95, step=0.05, display_mode=io.NumberDisplay.slider, optional=True,
                    tooltip="For the frames of a video: how much each leans on the one before it. 0.9 is calm; 0 leaves every "
                    "picture on its own.",
                ),
                host.Regions.Input(
                    "regions", optional=True,
                    tooltip="From StyleMamba Region: several masks, each with its own style, in place of prompt, style and mask.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The stylized pictures, or the frames of the video."),
                io.Video.Output(
                    display_name="video", tooltip="The same as a video, with the sound and frame rate of the input."
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, image, prompt: str, strength: float, structure: float, stroke_scale: float, preserve_color: bool,
        mask=None, style=None, model=None, preset: str = _NO_PRESET, shading: float = 0.0, preserve_palette: bool = False,
        tone_only: bool = False, protect_text: bool = False, feather: float = 0.0, deflicker: float = 0.0, regions=None,
    ) -> io.NodeOutput:  # fmt: skip
        from ..pipeline.masks import feather_mask
        from ..pipeline.style_mixing import composite

        if regions and (mask is not None or style is not None):
            raise ValueError(
                "regions say where and what to paint: disconnect mask and style, or connect them to a StyleMamba Region."
            )
        settings = _settings(
            preset,
            strength=(strength, 1.0),
            structure=(structure, 0.0),
            stroke_scale=(stroke_scale, 1.0),
            preserve_color=("palette" if preserve_palette else preserve_color, False),
            shading=(shading, 0.0),
            tone_only=(tone_only, False),
            protect_text=(protect_text, False),
            feather=(feather, 0.0),
        )
        image, audio, frame_rate = from_image_or_video(image)
        pictures = from_image(image)
        pictures = pictures.cpu()
        regions = regions or (Region(mask, prompt, style),)
        others = [region.style for region in regions if not (region.style and region.style.pictures)]
        if others:  # styles of pictures bring their own model
            model = model or default_model(*others)
        strength, feather = settings.pop("strength"), settings.pop("feather")
        progress = host.Progress(len(regions) * len(pictures))
        result = _rgb(pictures)
        for number, region in enumerate(regions):
            if region.style and region.style.pictures:
                styled = PictureGuidedModel.of(region.style, strength * region.strength)
            else:
                styled = model.styled(region.style, region.prompt, strength * region.strength)
            styled.model.to_device(*pictures.shape[-2:])
            before = number * len(pictures)
            painted = stylize(
                styled,
                pictures,
                deflicker=deflicker,
                progress=lambda done, before=before: progress(before + done),
                **settings,
            )
            # After the frames are calm: what no mask covers stays as it was.
            area = from_mask(region.mask, len(pictures), pictures.shape[-2:])
            if area is not None and not area.any():
                logger.warning("The mask is empty (0 everywhere): nothing is stylized.")
            rgb = painted[:, :3]
            result = rgb if area is None else composite(result, rgb, feather_mask(area.cpu(), feather))
        result = to_image(torch.cat([result, painted[:, 3:]], dim=1))
        return io.NodeOutput(result, host.video(result[..., :3], audio, frame_rate))


def stylize(styled, pictures: Tensor, *, progress, deflicker: float = 0.0, **settings) -> Tensor:
    """(B, C, H, W) in [0, 1] with 1, 3 or 4 channels -> the same with 3, or 4 where there was alpha. settings: further
    arguments of the pipeline. progress: called with the number that is done."""
    from ..pipeline.deflicker import Deflicker

    def run(part: Tensor) -> Tensor:
        result = styled.pipe(
            part.to(styled.model.device),
            strength=styled.strength,
            output_type="pt",
            **styled.arguments(len(part)),
            **settings,
        )
        return result.images.cpu()

    stylized = run_in_batches(run, pictures, tile=styled.enable_tiling, progress=progress)
    if deflicker:
        steady = Deflicker(deflicker)
        pairs = zip(_rgb(pictures).split(1), stylized[:, :3].split(1), strict=True)
        stylized = torch.cat([torch.cat([steady(*pair) for pair in pairs]), stylized[:, 3:]], dim=1)
    return stylized


def _rgb(pictures: Tensor) -> Tensor:
    return pictures[:, :3].expand(-1, 3, -1, -1)


def _settings(name: str, **widgets: tuple) -> dict:
    """Those of the preset, with what was changed beside it; each widget with its value and its default."""
    from ..pipeline.presets import preset

    chosen = {} if name == _NO_PRESET else preset(name)
    return {
        widget: chosen.get(widget, default) if value == default else value
        for widget, (value, default) in widgets.items()
    }
