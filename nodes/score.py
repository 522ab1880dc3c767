"""StyleMamba Score: how well the picture was kept and how well the style was met, in numbers."""

import math

from . import host
from .host import io
from .model import DEFAULT_MODEL, HostModel
from .pictures import from_image

# outputs of the node -> rows of `pipeline/metrics.py`
_NUMBERS = {
    "ssim": "ssim",
    "psnr": "psnr",
    "lpips": "lpips",
    "prompt_cosine": "siglip_cos",
    "direction": "dir_sim",
}
_TOOLTIPS = {
    "ssim": "Structure kept, up to 1.",
    "psnr": "Pixels kept, in dB.",
    "lpips": "Perceptual distance from the original, 0 is none.",
    "prompt_cosine": "Cosine of picture and prompt in the model's own encoder.",
    "direction": "How far the change goes the way of the prompt, up to 1.",
}


class StyleMambaScore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="StyleMambaScore",
            display_name="StyleMamba Score",
            category="StyleMamba",
            description="Measures a stylized picture against its original and the prompt. Each score says in the report how it was "
            "taken; one that this model cannot give is nan.",
            search_aliases=["metrics", "ssim", "lpips", "clip score", "compare images", "quality"],
            is_output_node=True,
            inputs=[
                io.Image.Input("stylized", tooltip="The result, or a batch."),
                io.Image.Input("content", tooltip="What it was made from: one picture for all, or one for each, of the same size."),
                io.String.Input(
                    "prompt", default="", multiline=True, tooltip="The style that was asked for. Empty: only the scores of the picture."
                ),
                host.Model.Input(
                    "model", optional=True, tooltip="Its encoders take the scores. Without one a bundled model is taken."
                ),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="Every score as JSON: value, encoder, range, resolution."),
                *(io.Float.Output(display_name=name, tooltip=_TOOLTIPS[name]) for name in _NUMBERS),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, stylized, content, prompt: str, model=None) -> io.NodeOutput:
        from ..pipeline.metrics import as_json, score

        model = model or HostModel.load(DEFAULT_MODEL)
        model.to_device()
        pipe = model.pipe
        reads_both = pipe.text_encoder is not None and pipe.image_encoder is not None
        rows = score(
            from_image(stylized).to(model.device),
            from_image(content).to(model.device),
            prompt.strip() or None,
            encoder=pipe.encoder if reads_both else None,
            perceptual=pipe.perceptual,
        )
        report = as_json(rows)
        numbers = [rows.get(row, {}).get("value", math.nan) for row in _NUMBERS.values()]
        return io.NodeOutput(report, *numbers, ui=host.shown_text(report))
