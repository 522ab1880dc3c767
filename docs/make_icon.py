"""`docs/icon.png` and `docs/banner.png`, as the ComfyUI registry wants them: a square of 400 px, and 21:9.

    python docs/make_icon.py

A scan runs over the tokens of a picture line by line and turns back at each end; drawn in one stroke that is an S and a
snake. Behind it the tokens are still pixels, where it has been they are paint.
"""

import math
import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
ICON, BANNER = (400, 400), (1680, 720)
SMOOTH = 3  # drawn so many times larger, then reduced

GROUND, DOT = (17, 21, 31), (38, 46, 63)
PAPER, FAINT = (240, 236, 226), (148, 158, 176)
# along the stroke, from pixels to paint
COLOURS = [(92, 108, 132), (64, 124, 160), (44, 168, 160), (246, 190, 84), (238, 108, 77)]
PAINT_FROM = 0.42  # share of the stroke that is still pixels
BRISTLES = 26

Point = tuple[float, float]


def main() -> None:
    icon().save(HERE / "icon.png", optimize=True)
    banner().save(HERE / "banner.png", optimize=True)


def icon() -> Image.Image:
    picture = Canvas(*ICON, pitch=40)
    picture.snake(serpentine([304, 200, 96], left=119, right=277), width=64)
    return picture.reduced()


def banner() -> Image.Image:
    picture = Canvas(*BANNER, pitch=60)
    picture.snake(serpentine([552, 360, 168], left=1010, right=1440), width=112)
    picture.text((120, 312), "StyleMamba", 116, PAPER)
    picture.text((124, 424), "Describe a style. Every pixel stays in its place.", 31, FAINT)
    return picture.reduced()


def serpentine(rows: Sequence[float], left: float, right: float, step: float = 0.5) -> list[Point]:
    """Points along lines that are joined by half circles, the first line from left to right."""
    points, radius = [], abs(rows[0] - rows[1]) / 2
    for number, row in enumerate(rows):
        forward = number % 2 == 0
        start, end = (left, right) if forward else (right, left)
        count = round(abs(end - start) / step)
        points += [(start + (end - start) * i / count, row) for i in range(count)]
        if number + 1 < len(rows):
            middle, side = (row + rows[number + 1]) / 2, 1 if forward else -1
            count = round(math.pi * radius / step)
            for i in range(count):
                angle = math.pi * i / count
                points.append(
                    (
                        end + side * radius * math.sin(angle),
                        middle + (row - middle) * math.cos(angle),
                    )
                )
    return points


class Canvas:
    """A dark ground with the tokens as dots; lengths are those of the finished picture."""

    def __init__(self, width: int, height: int, pitch: int) -> None:
        self.size = (width, height)
        self.image = Image.new("RGB", (width * SMOOTH, height * SMOOTH), GROUND)
        self.draw = ImageDraw.Draw(self.image)
        for y in range(pitch // 2, height, pitch):
            for x in range(pitch // 2, width, pitch):
                self.disc((x, y), pitch / 22, DOT)

    def reduced(self) -> Image.Image:
        return self.image.resize(self.size, Image.Resampling.LANCZOS)

    def disc(self, centre: Point, radius: float, colour) -> None:
        x, y = (SMOOTH * value for value in centre)
        r = SMOOTH * radius
        self.draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def text(self, place: Point, text: str, size: int, colour) -> None:
        font = ImageFont.load_default(size * SMOOTH)
        self.draw.text([SMOOTH * value for value in place], text, fill=colour, font=font, anchor="ls")

    def snake(self, path: list[Point], width: float) -> None:
        """A stroke along the path, as wide as `width` at the head, where the path ends."""
        self._pixels(path, width)
        self._paint(path, width)
        self._head(path, width)

    def _pixels(self, path: list[Point], width: float) -> None:
        last, reach = None, 0.0
        for i in range(round(PAINT_FROM * len(path))):
            share, (x, y) = i / len(path), path[i]
            side = width * (0.3 + 0.6 * share / PAINT_FROM)
            if last is not None and max(abs(x - last[0]), abs(y - last[1])) < reach + 0.62 * side:
                continue
            last, reach = (x, y), 0.55 * side
            box = [SMOOTH * value for value in (x - side / 2, y - side / 2, x + side / 2, y + side / 2)]
            self.draw.rounded_rectangle(box, radius=SMOOTH * side * 0.12, fill=along(share))

    def _paint(self, path: list[Point], width: float) -> None:
        chance = random.Random(3)
        offsets = [2 * (i + 0.5) / BRISTLES - 1 for i in range(BRISTLES)]
        chance.shuffle(offsets)
        for offset in offsets:
            # each bristle touches down at another place, and has taken up another shade
            begin = PAINT_FROM + chance.uniform(0.03, 0.1) + 0.03 * abs(offset)
            shade, phase = chance.uniform(-0.16, 0.16), chance.uniform(0, math.tau)
            for i in range(round(begin * len(path)), len(path), 2):
                share = i / len(path)
                ripple = shade + 0.05 * math.sin(phase + 40 * share)
                centre = beside(path, i, offset * width * 0.46)
                self.disc(centre, width / BRISTLES * 1.15, shaded(along(share), ripple))

    def _head(self, path: list[Point], width: float) -> None:
        x, y = path[-1]
        ahead = math.copysign(1, x - path[-8][0])
        stem = [(x + ahead * width * reach, y) for reach in (0.5, 1.08)]
        for fork in (-0.2, 0.2):
            self._line([*stem, (x + ahead * width * 1.34, y + fork * width)], width * 0.055, COLOURS[-1])
        for reach in range(60):  # rounder than the body, and pointed a little
            share = reach / 60
            self.disc((x + ahead * width * 0.42 * share, y), width * (0.58 - 0.2 * share**2), COLOURS[-1])
        self.disc((x + ahead * width * 0.3, y - width * 0.2), width * 0.13, PAPER)
        self.disc((x + ahead * width * 0.34, y - width * 0.2), width * 0.065, GROUND)

    def _line(self, points: list[Point], width: float, colour) -> None:
        scaled = [(SMOOTH * x, SMOOTH * y) for x, y in points]
        self.draw.line(scaled, fill=colour, width=round(SMOOTH * width), joint="curve")
        for point in points:
            self.disc(point, width / 2, colour)


def beside(path: list[Point], i: int, distance: float) -> Point:
    (x0, y0), (x1, y1) = path[max(i - 2, 0)], path[min(i + 2, len(path) - 1)]
    size = math.hypot(x1 - x0, y1 - y0)
    return path[i][0] - (y1 - y0) / size * distance, path[i][1] + (x1 - x0) / size * distance


def along(share: float) -> tuple[int, ...]:
    """The colour at that share of the stroke."""
    place = min(share, 1) * (len(COLOURS) - 1)
    first = min(int(place), len(COLOURS) - 2)
    return tuple(
        round(a + (b - a) * (place - first)) for a, b in zip(COLOURS[first], COLOURS[first + 1], strict=True)
    )


def shaded(colour: tuple[int, ...], amount: float) -> tuple[int, ...]:
    """Towards white where positive, towards black where negative."""
    goal = 255 if amount > 0 else 0
    return tuple(round(value + (goal - value) * abs(amount)) for value in colour)


if __name__ == "__main__":
    main()
