"""StyleMamba Style From Image: what the model's image tower sees in a picture, as a style, or the picture itself for a
model that paints from pictures."""

import torch
from PIL import Image

from . import host
from .folders import image_guided_names
from .host import io
from .model import HostModel, default_model
from .pictures import from_image
from .style_mix import StyleMix, StylePicture

_IMAGE_TOWER = "StyleMamba"


class StyleMambaStyleFromImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="StyleMambaStyleFromImage",
            display_name="StyleMamba Style From Image",
            category="StyleMamba",
            description="Takes the style from a picture in place of words. Several pictures are averaged.",
            search_aliases=[
                "style reference",
                "image style",
                "ipadapter style",
                "reference image",
                "SaMam",
                "Mamba-ST",
            ],
            inputs=[
                host.Model.Input(
                    "model",
                    optional=True,
                    tooltip="From StyleMamba Loader; one with an image tower. Without one a bundled model is taken. For the method "
                    "StyleMamba alone.",
                ),
                io.Image.Input(
                    "image", tooltip="A picture in the style, or a batch of them; only the style is taken."
                ),
                io.Combo.Input(
                    "method",
                    options=[_IMAGE_TOWER, *image_guided_names()],
                    default=_IMAGE_TOWER,
                    optional=True,
                    tooltip="StyleMamba sums the picture up like words, for all nodes that take styles. A SaMam or Mamba-ST, "
                    "bundled or in models/stylemamba, paints from the picture itself, in StyleMamba Stylize only, and needs "
                    "no model.",
                ),
            ],
            outputs=[
                host.Style.Output(
                    display_name="style",
                    tooltip="For the same model's Stylize, Fuse, Decode and Blend; by the other methods for "
                    "Stylize, and for Blend with its like.",
                )
            ],
        )

    @classmethod
    def execute(cls, image, model=None, method: str = _IMAGE_TOWER) -> io.NodeOutput:
        from ..pipeline.images import to_pil
        from ..pipeline.style import Style, describe_component, library_versions, timestamp
        from ..pipeline.style_mixing import mix_directions

        pictures = from_image(image)
        pictures = pictures[:, :3].expand(-1, 3, -1, -1)
        if method != _IMAGE_TOWER:
            painter = HostModel.load_image_guided(method)
            share = 1 / len(pictures)
            parts = tuple((StylePicture(painter, picture.cpu()), share) for picture in pictures.split(1))
            return io.NodeOutput(StyleMix(parts))
        model = model or default_model()
        model.require_pictures("read a style from a picture")
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
