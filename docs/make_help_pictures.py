"""The pictures of the help pages, `web/docs/<NodeId>.jpg`: what each node does to bundled photos with the bundled model.

    python docs/make_help_pictures.py                        # all of them; about a minute on one core
    python docs/make_help_pictures.py StyleMambaFuse         # those named

Made through the Python package, which gives the same pixels as the nodes. Run it again when the bundled weights change.
"""

import math
import sys
from functools import cache
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from stylemamba import Region, StyleMambaPipeline, preset, score, stylize_regions
from stylemamba.pipeline.command_line.contact_sheet import draw_contact_sheet
from stylemamba.pipeline.images import read_images, to_pil
from stylemamba.pipeline.lut import apply_lut, fit_lut
from stylemamba.weights import bundled_photos

PAGES = Path(__file__).parent.parent / "web" / "docs"
PHOTO, CELL = (480, 360), 240
LARGEST = 60_000  # bytes; a help page opens at once, and every user downloads all of them
PAPER, INK, LINE = "white", "black", (238, 108, 77)
GLASS, WOODBLOCK, INK_DRAWING = "stained glass", "ukiyo-e woodblock print", "an ink drawing on paper"


@cache
def model() -> StyleMambaPipeline:
    pipe = StyleMambaPipeline.from_pretrained("tiny")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def photo(name: str) -> Image.Image:
    path = next(path for path in bundled_photos() if path.stem == name)
    return ImageOps.fit(Image.open(path).convert("RGB"), PHOTO)


def paint(picture: Image.Image, prompt=None, **settings) -> Image.Image:
    return model()(picture, prompt, **settings).images[0]


@cache
def fitted():
    """A style that was fitted on the dandelions."""
    return model().fit_style(photo("dandelion-field"), GLASS, generator=torch.Generator().manual_seed(0))


def paint_fitted(picture: Image.Image) -> Image.Image:
    model().load_style(fitted(), "fitted")
    try:
        return paint(picture)
    finally:
        model().unload_styles()


def stylize() -> Image.Image:
    cat = photo("cat")
    left_half = Image.new("L", PHOTO)
    left_half.paste(255, (0, 0, PHOTO[0] // 2, PHOTO[1]))
    return sheet(
        {
            "image": cat,
            WOODBLOCK: paint(cat, WOODBLOCK),
            "structure 1": paint(cat, WOODBLOCK, structure=1.0),
            "stroke_scale 2": paint(cat, WOODBLOCK, stroke_scale=2.0),
            "preserve_color": paint(cat, WOODBLOCK, preserve_color=True),
            "mask: left half": paint(cat, WOODBLOCK, mask_image=left_half),
        }
    )


def loader() -> Image.Image:
    portrait = photo("astronaut-portrait")
    return sheet(
        {
            "image": portrait,
            "encoded and decoded": paint(portrait, WOODBLOCK, strength=0.0),
            "model in Stylize": paint(portrait, WOODBLOCK),
        }
    )


def load_style() -> Image.Image:
    rocket = photo("rocket-launch")
    return sheet({"image": rocket, "thumbnail": fitted().thumbnail, "with the style": paint_fitted(rocket)})


def prompt_fit() -> Image.Image:
    field = photo("dandelion-field")
    curve = draw_curve(fitted().info["losses"]["total"])
    return sheet({"images": field, "loss_map": curve, "preview": paint_fitted(field)})


def save_style() -> Image.Image:
    names = ("dandelion-field", "cup-of-coffee", "cat")
    captions = ("fitted on this picture", "saved, and used on", "any other")
    return sheet({caption: paint_fitted(photo(name)) for caption, name in zip(captions, names, strict=True)})


def blend_styles() -> Image.Image:
    rocket = photo("rocket-launch")
    return sheet(
        {
            f"{weight:g} and {1 - weight:g}": paint(rocket, [[(INK_DRAWING, weight), (GLASS, 1 - weight)]])
            for weight in (1.0, 0.5, 0.0)
        }
    )


def style_from_image() -> Image.Image:
    cup, galaxies = photo("cup-of-coffee"), photo("galaxies")
    return sheet(
        {"what to paint": cup, "image": galaxies, "with its style": paint(cup, style_image=galaxies)}
    )


def fuse() -> Image.Image:
    cup = photo("cup-of-coffee")
    return sheet({f"strength {value:g}": paint(cup, WOODBLOCK, strength=value) for value in (0.0, 0.5, 1.0)})


def decode() -> Image.Image:
    portrait = photo("astronaut-portrait")
    pipe = model()
    fused = pipe(portrait, INK_DRAWING, output_type="latent").images
    with torch.no_grad():
        plain = pipe.decode(fused, strength=0.0)[0].clamp(0, 1)
    plain = Image.fromarray((plain.movedim(0, -1) * 255).round().byte().numpy())
    return sheet(
        {
            "image": portrait,
            "decoded with no style": plain,
            "decoded with the style": paint(portrait, INK_DRAWING),
        }
    )


def score_sheet() -> Image.Image:
    cat = photo("cat")
    painted = paint(cat, INK_DRAWING)
    pipe = model()
    rows = score(painted, cat, INK_DRAWING, encoder=pipe.encoder, perceptual=pipe.perceptual)
    shown = {"ssim": "ssim", "psnr": "psnr", "lpips": "lpips", "siglip_cos": "prompt_cosine", "dir_sim": "direction"}  # fmt: skip
    lines = [f"{name}  {rows[row]['value']:.3g}" for row, name in shown.items() if row in rows]
    return sheet({"content": cat, "stylized": painted, "scores": draw_lines(lines)})


def region() -> Image.Image:
    rocket = photo("rocket-launch")
    sky, ground = (Image.new("L", PHOTO) for _ in range(2))
    sky.paste(255, (0, 0, PHOTO[0], PHOTO[1] // 2))
    ground.paste(255, (0, PHOTO[1] * 7 // 10, *PHOTO))
    parts = [Region(sky, "in the style of van Gogh"), Region(ground, "oriental carpet")]
    both = stylize_regions(model(), rocket, parts, feather=12)[0]
    return sheet({"image": rocket, "mask of the sky": sky, "two regions": both})


def save_lut() -> Image.Image:
    rocket, cup = photo("rocket-launch"), photo("cup-of-coffee")
    toned = paint(rocket, "neon lights at night", **preset("cinematic"))
    table = fit_lut(*(read_images(picture)[0].rgb for picture in (rocket, toned)))
    again = to_pil(apply_lut(read_images(cup)[0].rgb, table))
    return sheet({"content": rocket, "stylized": toned, "another, by the table": again})


PICTURES = {
    "StyleMambaStylize": stylize,
    "StyleMambaLoader": loader,
    "StyleMambaLoadStyle": load_style,
    "StyleMambaPromptFit": prompt_fit,
    "StyleMambaSaveStyle": save_style,
    "StyleMambaBlendStyles": blend_styles,
    "StyleMambaStyleFromImage": style_from_image,
    "StyleMambaFuse": fuse,
    "StyleMambaDecode": decode,
    "StyleMambaScore": score_sheet,
    "StyleMambaRegion": region,
    "StyleMambaSaveLUT": save_lut,
}


def sheet(panels: dict[str, Image.Image]) -> Image.Image:
    """Captioned panels, three in a row."""
    captions, pictures = list(panels), list(panels.values())
    rows = [
        draw_contact_sheet(captions[i : i + 3], [pictures[i : i + 3]], cell=CELL)
        for i in range(0, len(panels), 3)
    ]
    whole = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)))
    top = 0
    for row in rows:
        whole.paste(row, (0, top))
        top += row.height
    return whole


def draw_curve(values: list[float]) -> Image.Image:
    """The losses of a fit over its steps, by their logarithms: the weight of the content falls midway to a sixtieth."""
    values = [math.log(value) for value in values]
    picture = Image.new("RGB", PHOTO, PAPER)
    width, height, margin = *PHOTO, 40
    low, high = min(values), max(values)
    points = [
        (
            margin + (width - 2 * margin) * i / max(1, len(values) - 1),
            height - margin - (height - 2 * margin) * (value - low) / max(high - low, 1e-9),
        )
        for i, value in enumerate(values)
    ]
    draw = ImageDraw.Draw(picture)
    draw.line([(margin, margin), (margin, height - margin), (width - margin, height - margin)], INK, width=2)
    draw.line(points, LINE, width=5, joint="curve")
    return picture


def draw_lines(lines: list[str]) -> Image.Image:
    picture = Image.new("RGB", PHOTO, PAPER)
    font = ImageFont.load_default(34)
    ImageDraw.Draw(picture).multiline_text((40, 50), "\n".join(lines), INK, font, spacing=20)
    return picture


def save(picture: Image.Image, path: Path) -> None:
    """At the best quality that fits."""
    for quality in range(90, 40, -4):
        picture.save(path, quality=quality, optimize=True, progressive=True)
        if path.stat().st_size <= LARGEST:
            return
    raise ValueError(
        f"{path.name} has {path.stat().st_size} bytes at the lowest quality, wanted {LARGEST}: make CELL smaller."
    )


def main() -> None:
    names = sys.argv[1:] or list(PICTURES)
    unknown = sorted(set(names) - set(PICTURES))
    if unknown:
        sys.exit(f"there is no node {', '.join(unknown)}; there are {', '.join(PICTURES)}.")
    PAGES.mkdir(parents=True, exist_ok=True)
    for name in names:
        save(PICTURES[name](), PAGES / f"{name}.jpg")


if __name__ == "__main__":
    main()
