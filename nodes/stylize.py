"""StyleMamba Stylize: picture and words in, stylized picture out, in one node."""

import torch
from torch import Tensor

from . import host
from .host import io
from .model import default_model
from .pictures import from_image, from_image_or_video, from_mask, to_image
from .tiles import run_in_batches

_TILE, _SMALLEST_TILE = 512, 128  # pixels


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
                    tooltip="How much of the picture's own edges and fine detail is put back.",
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
                host.Style.Input("style", optional=True, tooltip="A fitted, loaded or blended style, in place of the prompt."),
                host.Model.Input(
                    "model", optional=True,
                    tooltip="From StyleMamba Loader, which keeps it loaded. Without one a bundled model is taken.",
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
        mask=None, style=None, model=None,
    ) -> io.NodeOutput:  # fmt: skip
        image, audio, frame_rate = from_image_or_video(image)
        pictures = from_image(image)
        model = model or default_model(style)
        model.to_device(*pictures.shape[-2:])
        styled = model.styled(style, prompt, strength)
        stylized = stylize(
            styled,
            pictures,
            structure=structure,
            stroke_scale=stroke_scale,
            preserve_color=preserve_color,
            mask=mask,
        )
        result = to_image(stylized)
        return io.NodeOutput(result, host.video(result, audio, frame_rate))


def stylize(
    styled,
    pictures: Tensor,
    *,
    structure: float = 0.0,
    stroke_scale: float = 1.0,
    preserve_color: bool = False,
    mask=None,
) -> Tensor:
    """(B, C, H, W) in [0, 1] with 1, 3 or 4 channels -> the same with 3, or 4 where there was alpha."""
    from ..pipeline.style_mixing import composite

    def run(part: Tensor) -> Tensor:
        result = styled.pipe(
            part.to(styled.model.device),
            prompt_embeds=styled.direction(len(part)),
            strength=styled.strength,
            structure=structure,
            stroke_scale=stroke_scale,
            preserve_color=preserve_color,
            output_type="pt",
        )
        return result.images.cpu()

    pictures = pictures.cpu()
    progress = host.Progress(len(pictures))
    stylized = run_in_batches(run, pictures, tile=_TILE, smallest=_SMALLEST_TILE, progress=progress)
    area = from_mask(mask, len(pictures), pictures.shape[-2:])
    if area is None:
        return stylized
    # Here and not in the pipeline, which would see only tiles where memory is short.
    rgb = composite(pictures[:, :3].expand(-1, 3, -1, -1), stylized[:, :3], area.cpu())
    return torch.cat([rgb, stylized[:, 3:]], dim=1)
