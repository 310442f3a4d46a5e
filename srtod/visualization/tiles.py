"""Titled pictures beside and below each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

__all__ = ["INK", "PAPER", "TILE_SIDE", "Tile", "enlarged", "grid"]

TILE_SIDE = 512  # pixels; smaller pictures are enlarged to at least this
SCREEN_WIDTH = 1600
GAP = 8
TITLE_HEIGHT = 26
FONT_SIZE = 15
PAPER, INK = "#1b1f24", "#ffffff"


class Tile(NamedTuple):
    """A picture and its title: words, each in a colour, and little pictures."""

    title: Sequence[tuple[str, str] | Image.Image]
    picture: Image.Image


def grid(tiles: Sequence[Tile], columns: int) -> Image.Image:
    """The tiles in rows of so many, each below its title.

    Titles grow with the pictures, so that they can be read when a wide grid is shown at the width of a screen.
    """
    width, height = (max(sides) for sides in zip(*(tile.picture.size for tile in tiles), strict=True))
    sheet_width = GAP + min(columns, len(tiles)) * (width + GAP)
    scale = max(1, min(sheet_width // SCREEN_WIDTH, width // TILE_SIDE))
    title_height = TITLE_HEIGHT * scale
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (sheet_width, rows * (title_height + height + GAP)), PAPER)
    for index, (title, picture) in enumerate(tiles):
        row, column = divmod(index, columns)
        left, top = GAP + column * (width + GAP), row * (title_height + height + GAP)
        sheet.paste(_title(title, width, scale), (left, top))
        sheet.paste(picture, (left, top + title_height))
    return sheet


def enlarged(picture: Image.Image, factor: int) -> Image.Image:
    """Every pixel as a square: objects of a few pixels are shown as they are, not blurred."""
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _title(title: Sequence[tuple[str, str] | Image.Image], width: int, scale: int) -> Image.Image:
    strip = Image.new("RGB", (width, TITLE_HEIGHT * scale), PAPER)
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(FONT_SIZE * scale)
    x = 0.0
    for part in title:
        if isinstance(part, Image.Image):
            part = enlarged(part, scale)
            strip.paste(part, (round(x), (strip.height - part.height) // 2))
            x += part.width + 2 * scale
            continue
        words, colour = part
        draw.text((x, strip.height / 2), words, fill=colour, font=font, anchor="lm")
        x += draw.textlength(f"{words} ", font=font)
    return strip
