"""Makes `docs/gallery.md` and its pictures: every application with its input, its few lines of code, and what came out.

    python docs/make_gallery.py                          # the gallery, with the bundled model
    python docs/make_gallery.py cinematic any-size       # the page, and of the pictures only these
    python docs/make_gallery.py --thumbnails             # the thumbnails of the named styles, after new weights

The code shown in the page is the code that was run: the source of the functions below.
"""

import argparse
import inspect
import textwrap
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps

from stylemamba import Region, StyleMambaPipeline, preset, stylize_regions
from stylemamba.pipeline.command_line.contact_sheet import draw_grid
from stylemamba.pipeline.deflicker import stylize_frames
from stylemamba.pipeline.images import read_images, to_pil
from stylemamba.pipeline.lut import apply_lut, fit_lut
from stylemamba.weights import bundled_photos, named_styles, thumbnail_of

HERE = Path(__file__).parent
COLUMNS = 4
Pictures = dict[str, Image.Image]


class Inputs:
    """Bundled photos and drawn pictures, at one size."""

    def __init__(self, side: int) -> None:
        self.side = side

    def photo(self, name: str) -> Image.Image:
        (path,) = [path for path in bundled_photos() if path.stem == name]
        return ImageOps.contain(Image.open(path).convert("RGB"), (self.side, self.side))

    def sketch(self) -> Image.Image:
        """A line drawing: the edges of a photo, as a pen would follow them."""
        grey = self.photo("cat").convert("L")
        fine, coarse = (np.asarray(grey.filter(ImageFilter.GaussianBlur(s)), float) for s in (0.8, 2.0))
        lines = np.clip(255 + 12 * np.minimum(fine - coarse + 1.5, 0), 0, 255)
        return Image.fromarray(lines.astype(np.uint8)).convert("RGB")

    def screen(self) -> Image.Image:
        """A page with a heading, a text, a button and a picture."""
        width, height = 640, 400
        page = Image.new("RGB", (width, height), "#f4f5f7")
        draw = ImageDraw.Draw(page)
        font, small = ImageFont.load_default(26), ImageFont.load_default(15)
        draw.rectangle([0, 0, width, 56], fill="#2b4c7e")
        draw.text((24, 12), "Weather in the mountains", fill="white", font=font)
        lines = [
            "Clear in the morning, clouds after noon.",
            "Wind from the west, 12 km/h.",
            "Sunset at 18:42.",
        ]
        for row, line in enumerate(lines):
            draw.text((24, 84 + 26 * row), line, fill="#202124", font=small)
        draw.rounded_rectangle([24, 330, 164, 372], 8, fill="#d9622b")
        draw.text((52, 341), "Read more", fill="white", font=small)
        page.paste(ImageOps.fit(self.photo("dandelion-field"), (270, 270)), (340, 84))
        scale = self.side / width
        return (
            page if scale >= 1 else page.resize((self.side, round(height * scale)), Image.Resampling.LANCZOS)
        )

    @staticmethod
    def mask(picture: Image.Image, *polygon: tuple[float, float]) -> Image.Image:
        """White inside the corners, given in parts of the picture; two corners are those of a box around an ellipse."""
        mask = Image.new("L", picture.size)
        corners = [(x * picture.width, y * picture.height) for x, y in polygon]
        draw = ImageDraw.Draw(mask)
        (draw.ellipse if len(corners) == 2 else draw.polygon)(corners, fill=255)
        return mask

    def pan(self, count: int) -> list[torch.Tensor]:
        """Frames of a camera that moves over a photo by parts of a pixel."""
        photo = self.photo("dandelion-field")
        side = round(0.75 * min(photo.size))
        frames = []
        for index in range(count):
            left, top = 1.3 * index, 0.7 * index
            box = (left, top, left + side, top + side)
            frame = photo.resize((side, side), Image.Resampling.BICUBIC, box=box)
            frames.append(torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None] / 255)
        return frames


# The applications. Each function is shown in the page as it stands here.


def one_prompt(pipe, inputs) -> Pictures:
    """**A prompt.** Any words; nothing was fitted to these."""
    photo = inputs.photo("astronaut-portrait")
    prompts = ["ukiyo-e woodblock print", "stained glass window", "pen and ink line drawing"]
    return {"photo": photo, **dict(zip(prompts, pipe(photo, prompts).images, strict=True))}


def several_styles(pipe, inputs) -> Pictures:
    """**Several styles in one.** Weighted prompts, straight (`linear`) or along the sphere (`slerp`), and a prompt with a
    picture. A prompt of weight 0 is not read at all; prompts that cancel each other give a warning. Fitted styles are mixed by
    `pipe.set_styles(names, weights)`; in ComfyUI *Blend Styles* takes styles and words alike."""
    photo = inputs.photo("cup-of-coffee")
    mixture = [("stained glass window", 0.6), ("loose watercolor painting", 0.4)]
    return {
        "photo": photo,
        "linear": pipe(photo, mixture).images[0],
        "slerp": pipe(photo, mixture, mix="slerp").images[0],
        "with a picture": pipe(photo, mixture, style_image=inputs.photo("galaxies")).images[0],
    }


def named(pipe, inputs) -> Pictures:
    """**Named styles.** 24 prompts that suit the bundled model; `stylemamba styles sheet` draws all of them, `--style mosaic`
    and the node *Load Style* take them by name. Eight here:"""
    photo = inputs.photo("cat")
    names = [
        "mosaic",
        "ink-wash",
        "starry-night",
        "embroidery",
        "pointillist",
        "neon",
        "engraving",
        "art-nouveau",
    ]
    return {name: pipe(photo, named_styles()[name]).images[0] for name in names}


def strength(pipe, inputs) -> Pictures:
    """**Strength.** 0 is the photo as the autoencoder sees it, 1 the style, 1.5 an exaggeration."""
    photo, prompt = inputs.photo("cat"), "loose watercolor painting"
    return {f"{s:g}": pipe(photo, prompt, strength=s).images[0] for s in (0, 0.5, 1, 1.5)}


def structure_and_shading(pipe, inputs) -> Pictures:
    """**What stays of the photo.** `structure` puts its edges back, `shading` its broad light and dark."""
    photo, prompt = inputs.photo("astronaut-portrait"), "expressionist painting by Edvard Munch"
    return {
        "photo": photo,
        "style": pipe(photo, prompt).images[0],
        "structure=0.3": pipe(photo, prompt, structure=0.3).images[0],
        "shading=0.9": pipe(photo, prompt, shading=0.9).images[0],
    }


def colours(pipe, inputs) -> Pictures:
    """**Colours.** Only light and dark of the style (`True`), or the style painted with the photo's colours (`"palette"`)."""
    photo, prompt = inputs.photo("dandelion-field"), "stained glass window"
    return {
        "photo": photo,
        "style": pipe(photo, prompt).images[0],
        "preserve_color=True": pipe(photo, prompt, preserve_color=True).images[0],
        '"palette"': pipe(photo, prompt, preserve_color="palette").images[0],
    }


def stroke_scale(pipe, inputs) -> Pictures:
    """**Size of the strokes.** In parts of the picture: the last one was painted from a photo of twice the size."""
    photo, prompt = inputs.photo("rocket-launch"), "mosaic of small tiles"
    large = photo.resize((2 * photo.width, 2 * photo.height), Image.Resampling.BICUBIC)
    return {
        "0.5": pipe(photo, prompt, stroke_scale=0.5).images[0],
        "1": pipe(photo, prompt).images[0],
        "2": pipe(photo, prompt, stroke_scale=2).images[0],
        "1, large photo": pipe(large, prompt).images[0],
    }


def regions(pipe, inputs) -> Pictures:
    """**Masks and regions.** Each region its own prompt or fitted style; outside of all masks no bit changes. On the command
    line `--region MASK=STYLE`, in ComfyUI a chain of *Region*."""
    photo = inputs.photo("rocket-launch")
    sky = inputs.mask(photo, (0, 0), (1, 0), (1, 0.45), (0, 0.45))
    ground = inputs.mask(photo, (0, 0.7), (1, 0.7), (1, 1), (0, 1))
    parts = [Region(sky, "in the style of van Gogh"), Region(ground, "oriental carpet")]
    return {"photo": photo, "two regions": stylize_regions(pipe, photo, parts, feather=photo.height / 20)[0]}


def light_style(pipe, inputs) -> Pictures:
    """**A light style over a photo.** Preset `photo`: its edges and its light stay."""
    photo, prompt = inputs.photo("dandelion-field"), "in the style of van Gogh"
    return {
        "photo": photo,
        "style": pipe(photo, prompt).images[0],
        "preset photo": pipe(photo, prompt, **preset("photo")).images[0],
    }


def product(pipe, inputs) -> Pictures:
    """**Product design.** Preset `product`: a new look under a mask; the shape and the light stay."""
    photo = inputs.photo("cup-of-coffee")
    mask = inputs.mask(photo, (0.13, 0.09), (0.81, 0.98))
    styled = pipe(photo, "mosaic of small tiles", mask_image=mask, **preset("product")).images[0]
    return {"photo": photo, "mask": mask, "product": styled}


def fashion(pipe, inputs) -> Pictures:
    """**Fashion.** Preset `fashion`: a new fabric; folds and shadows stay where they are."""
    photo = inputs.photo("astronaut-portrait")
    left = [(0, 1), (0, 0.62), (0.08, 0.52), (0.22, 0.44), (0.3, 0.53), (0.45, 0.56)]
    right = [(0.6, 0.53), (0.67, 0.43), (0.72, 0.5), (0.72, 0.62), (0.6, 0.72), (0.56, 0.85), (0.6, 1)]
    suit = inputs.mask(photo, *left, *right)
    styled = pipe(photo, "hand embroidery on linen", mask_image=suit, **preset("fashion")).images[0]
    return {"photo": photo, "mask": suit, "fashion": styled}


def sketch(pipe, inputs) -> Pictures:
    """**Colouring a line drawing.** Preset `sketch`: every line stays."""
    drawing = inputs.sketch()
    return {
        "drawing": drawing,
        "sketch": pipe(drawing, "loose watercolor painting", **preset("sketch")).images[0],
    }


def user_interface(pipe, inputs) -> Pictures:
    """**A screen.** Preset `ui`: text is found and keeps every edge."""
    page, prompt = inputs.screen(), "soft pastel drawing"
    return {
        "page": page,
        "style": pipe(page, prompt).images[0],
        "ui": pipe(page, prompt, **preset("ui")).images[0],
    }


def cinematic(pipe, inputs) -> Pictures:
    """**Cinematic tone.** Preset `cinematic`: the colours of the style, none of its texture. A table of colours reproduces it
    on any other material: `write_cube` in Python, `--cube tone.cube` on the command line and the node *Save LUT* write it for
    video editors."""
    photo, other = inputs.photo("rocket-launch"), inputs.photo("cup-of-coffee")
    graded = pipe(photo, "neon lights at night", **preset("cinematic")).images[0]
    before, after, another = (read_images(picture)[0].rgb for picture in (photo, graded, other))
    table = fit_lut(before, after)
    return {
        "photo": photo,
        "cinematic": graded,
        "another photo": other,
        "by the table": to_pil(apply_lut(another, table)),
    }


def any_size(pipe, inputs) -> Pictures:
    """**Any size.** What does not fit into about 2 GB goes in overlapping tiles that share the statistics of the whole picture;
    here they are asked for (`--tile 256`). In ComfyUI they are taken when memory is short."""
    photo, prompt = inputs.photo("galaxies"), "stained glass window"
    large = photo.resize((2 * photo.width, 2 * photo.height), Image.Resampling.BICUBIC)
    whole = pipe(large, prompt).images[0]
    pipe.enable_tiling(256)
    tiled = pipe(large, prompt).images[0]
    pipe.disable_tiling()
    difference = ImageChops.difference(whole, tiled).point(lambda value: 32 * value)
    return {"photo": large, "whole": whole, "in tiles": tiled, "difference, 32 times": difference}


def video(pipe, inputs) -> Pictures:
    """**Video.** `stylemamba stylize clip.mp4 "..." -o out.mp4` keeps sound, times and size. Each frame leans on the one
    before it, carried along by the motion. Four frames of a camera that moves:"""

    settings = {"prompt": "in the style of van Gogh", "output_type": "pt"}
    film = stylize_frames(lambda frame: pipe(frame, **settings).images, inputs.pan(4), deflicker=0.9)
    frames = list(film)
    pixels = [(frame[0] * 255).round().byte().permute(1, 2, 0).numpy() for frame in frames]
    return {f"frame {index}": Image.fromarray(frame) for index, frame in enumerate(pixels)}


APPLICATIONS: list[Callable[..., Pictures]] = [
    one_prompt, several_styles, named, strength, structure_and_shading, colours, stroke_scale, regions, light_style, product,
    fashion, sketch, user_interface, cinematic, any_size, video,
]  # fmt: skip

_HEAD = """# Gallery

What StyleMamba is used for: input, code, output. Made with the bundled model by `python docs/make_gallery.py`, nothing was
retouched and nothing chosen among several. Every snippet begins with these lines:

```py
from PIL import Image, ImageChops

from stylemamba import Region, StyleMambaPipeline, preset, stylize_regions
from stylemamba.pipeline.deflicker import stylize_frames
from stylemamba.pipeline.images import read_images, to_pil
from stylemamba.pipeline.lut import apply_lut, fit_lut
from stylemamba.weights import named_styles

pipe = StyleMambaPipeline.from_pretrained("tiny")
```

`inputs` is `Inputs(512)` of [make_gallery.py](make_gallery.py): `inputs.photo(name)` opens a bundled photo, its other methods give
a mask, a line drawing, a page or the frames of a film. The dictionary that is returned is the row of pictures above the code,
each with its caption.

On the command line the arguments have the same names (`stylemamba stylize --help`), and so have the widgets of the node
*Stylize*, but for two: `preserve_color="palette"` is `--preserve-palette` and `preserve_palette`, `mask_image` is `--mask` and
`mask`. In ComfyUI, mixtures, style pictures and regions have nodes of their own.
"""


def name_of(application: Callable) -> str:
    return application.__name__.replace("_", "-")


def make_gallery(
    pipe: StyleMambaPipeline, folder: Path, side: int, cell: int, names: Collection[str] = ()
) -> Path:
    """Writes `gallery.md` and `gallery/` into the folder; of the pictures only those named, if any are."""
    inputs, text = Inputs(side), [_HEAD]
    (folder / "gallery").mkdir(parents=True, exist_ok=True)
    for application in APPLICATIONS:
        name = name_of(application)
        if not names or name in names:
            sheet = draw_grid(list(application(pipe, inputs).items()), COLUMNS, cell)
            sheet.save(folder / "gallery" / f"{name}.webp", quality=85)
        description = " ".join(application.__doc__.split())
        text += [
            f"\n{description}\n",
            f"![{name}](gallery/{name}.webp)\n",
            f"```python\n{_code(application)}\n```\n",
        ]
    page = folder / "gallery.md"
    page.write_text("\n".join(text), encoding="utf-8")
    return page


def make_thumbnails(pipe: StyleMambaPipeline, side: int = 144) -> None:
    """A photo in every named style, for `stylemamba styles sheet`."""
    photo = ImageOps.fit(Inputs(512).photo("cat"), (2 * side, 2 * side))
    for name, prompt in named_styles().items():
        path = thumbnail_of(name)
        path.parent.mkdir(exist_ok=True)
        pipe(photo, prompt).images[0].resize((side, side), Image.Resampling.LANCZOS).save(path, quality=82)


def _code(function: Callable) -> str:
    """The body of a function, without its signature and description."""
    source = inspect.getsource(function)
    return textwrap.dedent(source[source.index('"""', source.index('"""') + 3) + 3 :].strip("\n"))


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("names", nargs="*", metavar="NAME", help="make only these pictures")
    options.add_argument("--model", default="tiny", help="a bundled name, a folder or a Hub id")
    options.add_argument("--out", type=Path, default=HERE, help="where gallery.md goes")
    options.add_argument("--side", type=int, default=512, help="longer side of the pictures, in pixels")
    options.add_argument("--cell", type=int, default=288, help="side of a picture in the page")
    options.add_argument(
        "--thumbnails", action="store_true", help="make the thumbnails of the named styles instead"
    )
    given = options.parse_args()
    if unknown := set(given.names).difference(map(name_of, APPLICATIONS)):
        options.error(f"there is no {', '.join(unknown)}; there are {', '.join(map(name_of, APPLICATIONS))}")
    pipe = StyleMambaPipeline.from_pretrained(given.model)
    pipe.set_progress_bar_config(disable=True)
    if given.thumbnails:
        make_thumbnails(pipe)
    else:
        make_gallery(pipe, given.out, given.side, given.cell, given.names)


if __name__ == "__main__":
    main()
