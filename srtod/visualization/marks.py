"""Marks around boxes: bright lines with a dark rim, which are seen on a dark image as on a bright one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from .tiles import PAPER

__all__ = ["FALSE_ALARM", "HIT", "MISSED", "NOT_COUNTED", "SHADE", "Kind", "Mark", "draw_marks", "swatch"]

SHADE = "#000000"
SWATCH = 18  # pixels: the side of a mark in a legend
TICK = 5  # pixels: how far the ticks at the corners of a false alarm go out
Box = tuple[int, int, int, int]


class Kind(NamedTuple):
    """How an outcome is shown. Shape tells kinds apart where colour does not.

    Attributes:
        shape: a box, a box with ticks at its corners, or an ellipse around the box.
        colour: its colour, bright; these three of Okabe and Ito's are told apart by the colour-blind.
    """

    shape: str
    colour: str


HIT = Kind("box", "#56b4e9")
FALSE_ALARM = Kind("ticks", "#ff8a3d")
MISSED = Kind("ellipse", "#f0e442")
NOT_COUNTED = Kind("box", "#a8b0b8")


class Mark(NamedTuple):
    """A mark and the box (x1, y1, x2, y2) that it is around, in whole pixels of the picture."""

    box: Box
    kind: Kind


def draw_marks(draw: ImageDraw.ImageDraw, marks: Sequence[Mark]) -> None:
    """Draws marks just outside their boxes, so that they hide no object; no rim covers a line."""
    for mark in marks:
        _draw(draw, mark, is_rim=True)
    for mark in marks:
        _draw(draw, mark, is_rim=False)


def swatch(kind: Kind) -> Image.Image:
    """A mark around an empty box, for a legend."""
    picture = Image.new("RGB", (SWATCH, SWATCH), PAPER)
    inset = {"box": 3, "ticks": 6, "ellipse": 5}[kind.shape]
    draw_marks(ImageDraw.Draw(picture), [Mark((inset, inset, SWATCH - 1 - inset, SWATCH - 1 - inset), kind)])
    return picture


def _draw(draw: ImageDraw.ImageDraw, mark: Mark, *, is_rim: bool) -> None:
    """Draws a mark's bright line, a pixel wide, or its rim."""
    x1, y1, x2, y2 = mark.box
    x2, y2 = max(x1, x2), max(y1, y2)
    colour = SHADE if is_rim else mark.kind.colour
    if mark.kind.shape == "ellipse":
        # Through the corners of a box a little larger than this one.
        across, down = round(0.21 * (x2 - x1)) + 4, round(0.21 * (y2 - y1)) + 4
        around = (x1 - across - is_rim, y1 - down - is_rim, x2 + across - 1 + is_rim, y2 + down - 1 + is_rim)
        draw.ellipse(around, outline=colour, width=4 if is_rim else 2)
        return
    if mark.kind.shape == "ticks":
        for x, outwards in ((x1 - 1, -1), (x2, 1)):
            for y, away in ((y1 - 1, -1), (y2, 1)):
                end = (x + outwards * TICK, y + away * TICK)
                draw.line((x, y, *end), fill=colour, width=5 if is_rim else 2)
    draw.rectangle((x1 - 1 - is_rim, y1 - 1 - is_rim, x2 + is_rim, y2 + is_rim), outline=colour)
