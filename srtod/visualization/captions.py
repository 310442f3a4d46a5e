"""Captions beside boxes, where they hide no other object."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import ImageDraw, ImageFont

from .marks import SHADE

__all__ = ["draw_captions"]

FONT_SIZE = 12
GAP = 3  # pixels between a box and its caption


def draw_captions(
    draw: ImageDraw.ImageDraw,
    boxes: np.ndarray,  # [M, 4], (x1, y1, x2, y2) in pixels of the picture
    captions: Sequence[str],
    colours: Sequence[str],
    size: tuple[int, int],
) -> None:
    """Writes each caption above, below, right or left of its box, whichever is the first that is free.

    One that would cover another box, a caption before it or the picture's edge is left out: among tiny objects standing
    close together, the objects matter more than their captions.

    Args:
        draw: where to.
        boxes: the boxes, the most important first.
        captions: the text of each box.
        colours: the colour of each text.
        size: width and height of the picture in pixels.
    """
    font = ImageFont.load_default(FONT_SIZE)
    taken = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    for box, caption, colour in zip(boxes, captions, colours, strict=True):
        left, top, right, bottom = draw.textbbox((0, 0), caption, font=font, stroke_width=1)
        for x, y in _places(box, right - left, bottom - top):
            place = np.array([x, y, x + right - left, y + bottom - top])
            if place[:2].min() < 0 or place[2] > size[0] or place[3] > size[1] or _overlaps(place, taken):
                continue
            draw.text((x - left, y - top), caption, colour, font, stroke_width=1, stroke_fill=SHADE)
            taken = np.vstack([taken, place])
            break


def _places(box: np.ndarray, width: float, height: float) -> list[tuple[float, float]]:
    """Upper left corners of a text of that size above, below, right and left of a box."""
    x1, y1, x2, y2 = box
    middle = (y1 + y2 - height) / 2
    return [
        (x1 - 1, y1 - GAP - height),
        (x1 - 1, y2 + GAP),
        (x2 + GAP, middle),
        (x1 - GAP - width, middle),
    ]


def _overlaps(box: np.ndarray, others: np.ndarray) -> bool:
    return bool(((box[:2] < others[:, 2:]) & (others[:, :2] < box[2:])).all(axis=1).any())
