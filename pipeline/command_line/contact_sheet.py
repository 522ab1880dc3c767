"""Contact sheets: many pictures in one, in rows and columns, each column with its caption. Knows only Pillow."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

_GAP = 8
_CAPTION_HEIGHT = 36
_FONT_SIZE = 18
_PAPER, _INK = "white", "black"


def draw_contact_sheet(
    captions: Sequence[str], rows: Sequence[Sequence[Image.Image]], cell: int = 320
) -> Image.Image:
    """One caption above each column; every picture is fitted, whole and centred, into at most `cell` x `cell` px."""
    font = ImageFont.load_default(_FONT_SIZE)
    fitted = [[ImageOps.contain(picture.convert("RGB"), (cell, cell)) for picture in row] for row in rows]
    heights = [max(picture.height for picture in row) for row in fitted]
    lefts = [_GAP + column * (cell + _GAP) for column in range(len(captions))]
    sheet = Image.new(
        "RGB", (lefts[-1] + cell + _GAP, _CAPTION_HEIGHT + sum(heights) + _GAP * len(rows)), _PAPER
    )
    draw = ImageDraw.Draw(sheet)
    for left, caption in zip(lefts, captions, strict=True):
        text = _shorten(caption, font, cell)
        draw.text((left + cell // 2, _CAPTION_HEIGHT // 2), text, fill=_INK, font=font, anchor="mm")
    top = _CAPTION_HEIGHT
    for row, height in zip(fitted, heights, strict=True):
        for left, picture in zip(lefts, row, strict=True):
            corner = (left + (cell - picture.width) // 2, top + (height - picture.height) // 2)
            sheet.paste(picture, corner)
        top += height + _GAP
    return sheet


def draw_grid(pictures: Sequence[tuple[str, Image.Image]], columns: int, cell: int = 192) -> Image.Image:
    """Pictures row by row, each with its own caption above it."""
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    strips = [
        draw_contact_sheet([name for name, _ in row], [[picture for _, picture in row]], cell) for row in rows
    ]
    sheet = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), _PAPER)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def _shorten(caption: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    text = caption
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-2].rstrip() + "…"
    return text
