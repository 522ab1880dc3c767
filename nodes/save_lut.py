"""StyleMamba Save LUT: the tone of a result as a `.cube` table, which editors of pictures and films load."""

import torch

from . import host
from .folders import new_table
from .host import io
from .pictures import from_image, to_image


class StyleMambaSaveLUT(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="StyleMambaSaveLUT",
            display_name="StyleMamba Save LUT",
            category="StyleMamba",
            description="Saves what became of the colours of a picture as a 3-D table (.cube) in the output folder, for "
            "editors of pictures and films. Texture is left out.",
            search_aliases=["cube", "color grading", "3d lut", "colour table", "export lut"],
            is_output_node=True,
            inputs=[
                io.Image.Input("content", tooltip="The picture as it was, or the frames of a film."),
                io.Image.Input(
                    "stylized", tooltip="The same after StyleMamba Stylize, or after any other node that changes colours."
                ),
                io.String.Input(
                    "file_name",
                    default="StyleMamba-tone",
                    tooltip="A name without folders; .cube is added. A file that exists is never replaced.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image", tooltip="The picture after the table: what an editor will show."
                ),
                io.String.Output(display_name="saved_as", tooltip="The name of the file in the output folder."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, content, stylized, file_name: str) -> io.NodeOutput:
        from ..pipeline.lut import apply_lut, cube_text, fit_lut, write_cube

        path = new_table(file_name)
        before, after = (
            from_image(image).cpu()[:, :3].expand(-1, 3, -1, -1) for image in (content, stylized)
        )
        if before.shape != after.shape:
            sizes = [f"{len(p)} of {p.shape[-1]} x {p.shape[-2]} px" for p in (before, after)]
            raise ValueError(
                f"content has pictures: {sizes[0]}, stylized: {sizes[1]}; wanted the same pictures before and after."
            )
        # the pictures of a batch one below the other: one table for all of them
        table = fit_lut(*(torch.cat(list(pictures), dim=-2)[None] for pictures in (before, after)))
        if path.exists() and path.read_text(encoding="utf-8", errors="replace") != cube_text(
            table, path.stem
        ):
            raise FileExistsError(
                f"{path.name} is in the output folder already and holds another tone; it was left as it is: give another "
                "file_name."
            )
        if not path.exists():
            write_cube(table, path, path.stem)
        graded = torch.cat([apply_lut(picture, table) for picture in before.split(1)])
        return io.NodeOutput(to_image(graded), path.name, ui=host.shown_text(f"Saved as {path.name}"))
