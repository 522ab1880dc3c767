"""StyleMamba Style From Image: what the model's image tower sees in a picture, as a style."""

import torch
from PIL import Image

from . import host
from .host import io
from .pictures import from_image
from .style_mix import StyleMix


class StyleMambaStyleFromImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="StyleMambaStyleFromImage",
            display_name="StyleMamba Style From Image",
            category="StyleMamba",
            description="Takes the style from a picture in place of words. Several pictures are averaged.",
            search_aliases=["style reference", "image style", "ipadapter style", "reference image"],
            inputs=[
                host.Model.Input("model", tooltip="From StyleMamba Loader; one with an image tower."),
                io.Image.Input(
                    "image", tooltip="A picture in the style, or a batch of them; only the style is taken."
                ),
            ],
            outputs=[
                host.Style.Output(
                    display_name="style", tooltip="For the same model's Stylize, Fuse, Decode and Blend."
                )
            ],
        )

    @classmethod
    def execute(cls, model, image) -> io.NodeOutput:
        from ..pipeline.images import to_pil
        from ..pipeline.style import Style, describe_component, library_versions, timestamp
        from ..pipeline.style_mixing import mix_directions

        model.require_pictures("read a style from a picture")
        pictures = from_image(image)
        pictures = pictures[:, :3].expand(-1, 3, -1, -1)
        model.to_device()
        pipe = model.pipe
        seen = pipe.encoder.embed_images(pictures.to(model.device))  # (B, E)
        embeds = mix_directions(*seen, weights=[1 / len(seen)] * len(seen))
        config = {name: value for name, value in pipe.fusion.config.items() if not name.startswith("_")}
        parts = {name: getattr(pipe, name) for name in ("vae", "image_encoder", "fusion", "style_decoder")}
        info = {
            "title": "style of a picture",
            "created": timestamp(),
            "steps_done": 0,
            "losses": {},
            "base": {name: describe_component(part) for name, part in parts.items() if part is not None},
            "versions": library_versions(),
        }
        thumbnail: Image.Image = to_pil(pictures[:1])
        with torch.inference_mode(False):
            weights = {name: value.clone() for name, value in pipe.fusion.state_dict().items()}
            style = Style(embeds.clone(), config, weights, {}, info, thumbnail)
        return io.NodeOutput(StyleMix.of(style))
