"""StyleMamba Load Style and StyleMamba Save Style: the style files of models/stylemamba/styles, and the named styles."""

import torch

from ..weights import named_styles, thumbnail_of
from . import host
from .folders import MAX_STEM, changed, find_style, new_style, style_names
from .host import io
from .pictures import from_pil, to_image
from .style_mix import StyleMix


class StyleMambaLoadStyle(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="StyleMambaLoadStyle",
            display_name="StyleMamba Load Style",
            category="StyleMamba",
            description="Loads a style file of models/stylemamba/styles or one of the bundled named styles, and shows its picture.",
            search_aliases=["style file", "style library", "open style", "safetensors style"],
            inputs=[
                io.Combo.Input(
                    "style_name",
                    options=style_names(),
                    tooltip="A file in models/stylemamba/styles, or a named style, which is a prompt. Press R after adding "
                    "files.",
                )
            ],
            outputs=[
                host.Style.Output(
                    display_name="style", tooltip="For StyleMamba Stylize, Fuse, Decode and Blend Styles."
                ),
                io.Image.Output(
                    display_name="thumbnail", tooltip="The small picture in the file; black if it has none."
                ),
                io.String.Output(display_name="prompt", tooltip="The words of the style, or its title."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, style_name: str) -> str:
        path = find_style(style_name)
        return style_name if path is None else changed(path)

    @classmethod
    def execute(cls, style_name: str) -> io.NodeOutput:
        from PIL import Image

        from ..pipeline.style import Style

        path = find_style(style_name)
        if path is None:
            style = prompt = named_styles()[style_name]
            with Image.open(thumbnail_of(style_name)) as picture:
                thumbnail = picture.convert("RGB")
        else:
            style = Style.load(path)
            prompt = style.prompt or style.info.get("title", "")
            thumbnail = style.thumbnail or Image.new("RGB", (64, 64))
        shown = to_image(from_pil(thumbnail))
        return io.NodeOutput(StyleMix.of(style), shown, prompt, ui=host.shown_pictures(shown, cls))


class StyleMambaSaveStyle(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="StyleMambaSaveStyle",
            display_name="StyleMamba Save Style",
            category="StyleMamba",
            description="Saves a fitted style to models/stylemamba/styles, where StyleMamba Load Style finds it. Nothing is ever "
            "overwritten: a name in use gets a number.",
            search_aliases=["export style", "keep style", "write style file"],
            is_output_node=True,
            inputs=[
                host.Style.Input(
                    "style",
                    tooltip="One style, from StyleMamba Prompt Fit or Style From Image; a blend is no single file.",
                ),
                io.String.Input(
                    "file_name", default="my-style", tooltip="A name without folders; .safetensors is added."
                ),
            ],
            outputs=[io.String.Output(display_name="saved_as", tooltip="The name it got.")],
        )

    @classmethod
    def execute(cls, style, file_name: str) -> io.NodeOutput:
        if len(style.parts) != 1:
            raise ValueError(
                f"got a blend of {len(style.parts)} styles, wanted one: save them one by one, and blend them when they are loaded."
            )
        if style.pictures:
            raise ValueError(
                f"the style is a picture for {style.pictures[0].model.name!r}: save the picture, and connect it to StyleMamba "
                "Style From Image again."
            )
        if style.words:
            raise ValueError(
                f"got the prompt {style.words[0]!r}, wanted a fitted style: fit it with StyleMamba Prompt Fit first."
            )
        name = _save(style.parts[0][0], new_style(file_name).stem)
        return io.NodeOutput(name, ui=host.shown_text(f"Saved as {name}"))


def _save(style, stem: str) -> str:
    """Under the first free name; a style that is there already is not written again."""
    path, number = new_style(stem), 1
    while path.exists():
        if _holds(path, style):
            return path.name
        number += 1
        path = new_style(f"{stem[: MAX_STEM - 4]}-{number}")
    style.save(path)
    return path.name


def _holds(path, style) -> bool:
    from ..pipeline.style import Style, StyleFileError

    try:
        found = Style.load(path)
    except StyleFileError:
        return False
    same = found.info == style.info and found.fusion.keys() == style.fusion.keys()
    return same and all(torch.equal(value, style.fusion[name]) for name, value in found.fusion.items())
