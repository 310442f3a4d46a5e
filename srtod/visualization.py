"""Pictures of what a detector sees: boxes, and with self-reconstruction the way from the image to the filter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from srtod.models import Detector, ImageReconstruction

__all__ = ["draw_boxes", "heat_map", "panel", "save_panels"]

TILE_SIDE = 512  # pixels; smaller pictures are enlarged to at least this
SCORE = 0.5  # detections below this are noise to the eye; the metric counts them all
GAP = 8
TITLE_HEIGHT = 26
FONT_SIZE = 15
PAPER, INK = "#1b1f24", "#ffffff"
COLOURS = ("#39d353", "#ff9f1c", "#3fa7ff", "#ff4d6d", "#c77dff", "#ffe14d", "#2ee6d6", "#ff8fd8", "#b0e64c", "#b08968")
HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))  # black, purple, red, orange, yellow


class _Tile(NamedTuple):
    """A picture with the words of its title, each in a colour."""

    title: list[tuple[str, str]]
    picture: Image.Image


def save_panels(
    detector: Detector,
    samples: Sequence[tuple[Tensor, dict[str, Any]]],
    class_names: Sequence[str],
    folder: str | Path,
    *,
    score: float = SCORE,
) -> list[Path]:
    """Runs the detector on samples and writes a PNG panel of each, named after its image.

    Args:
        detector: a detector in evaluation mode.
        samples: images `[3, H, W]` in [0, 1] with their targets, as `srtod.data` gives them.
        class_names: name of each class; label k is `class_names[k - 1]`.
        folder: where the files go; made if it does not exist.
        score: detections must score at least this to be drawn.

    Returns:
        The files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    device = next(detector.parameters()).device
    files = []
    for image, target in samples:
        image = image.to(device)
        with torch.no_grad():
            [detections] = detector([image])
        reconstruction = None
        if detector.self_reconstruction is not None:
            [reconstruction] = detector.reconstruct([image])
        picture = panel(image, target, detections, reconstruction, class_names=class_names, score=score)
        files.append(folder / f"{Path(target['file_name']).stem}.png")
        picture.save(files[-1])
    return files


def panel(
    image: Tensor,
    target: dict[str, Any],
    detections: dict[str, Tensor],
    reconstruction: ImageReconstruction | None = None,
    *,
    class_names: Sequence[str],
    score: float = SCORE,
) -> Image.Image:
    """One row of titled pictures: image with objects | reconstruction | difference map | filter | detections.

    Args:
        image: `[3, H, W]` in [0, 1].
        target: `boxes` `[M, 4]`, (x1, y1, x2, y2) in pixels, and `labels` `[M]` from 1.
        detections: the same with `scores` `[M]` in [0, 1].
        reconstruction: what `Detector.reconstruct` gives; None leaves out the three pictures in the middle.
        class_names: name of each class; label k is `class_names[k - 1]`.
        score: detections must score at least this to be drawn.
    """
    kept = detections["scores"] >= score
    boxes, labels = detections["boxes"][kept], detections["labels"][kept]
    tiles = [_boxes_tile("image with", image, target["boxes"], target["labels"], class_names)]
    if reconstruction is not None:
        tiles += _reconstruction_tiles(reconstruction)
    tiles.append(_boxes_tile(f"score {score:g} and over:", image, boxes, labels, class_names))
    return _row(tiles)


def draw_boxes(image: Tensor, boxes: Tensor, labels: Tensor, *, enlarge: int = 1) -> Image.Image:
    """The image with a thin outline just outside every box, coloured by class.

    Args:
        image: `[3, H, W]` in [0, 1].
        boxes: `[M, 4]`, (x1, y1, x2, y2) in pixels of the image.
        labels: `[M]`, from 1.
        enlarge: whole factor by which the picture is larger than the image.
    """
    picture = _enlarged(F.to_pil_image(image.cpu().clamp(0, 1)), enlarge)
    draw = ImageDraw.Draw(picture)
    for (x1, y1, x2, y2), label in zip((boxes.cpu() * enlarge).round().tolist(), labels.tolist(), strict=True):
        draw.rectangle((x1 - 1, y1 - 1, max(x1, x2), max(y1, y2)), outline=_colour(label))
    return picture


def heat_map(values: Tensor, top: float) -> Image.Image:
    """Values as a picture, 0 black and `top` and above a light yellow.

    Args:
        values: `[1, H, W]`.
        top: the value that gets the lightest colour; positive.
    """
    colours = torch.tensor(HEAT, dtype=torch.float32)
    position = (values[0].float().cpu() / top).clamp(0, 1) * (len(HEAT) - 1)
    below = position.long().clamp(max=len(HEAT) - 2)
    share = (position - below)[..., None]
    pixels = colours[below] * (1 - share) + colours[below + 1] * share
    return Image.fromarray(pixels.round().to(torch.uint8).numpy())


def _boxes_tile(words: str, image: Tensor, boxes: Tensor, labels: Tensor, class_names: Sequence[str]) -> _Tile:
    counts = sorted(Counter(labels.tolist()).items())
    title = [(words, INK)] + [(f"{count} {class_names[label - 1]}", _colour(label)) for label, count in counts]
    if not counts:
        title.append(("no object", INK))
    return _Tile(title, draw_boxes(image, boxes, labels, enlarge=_enlargement(image)))


def _reconstruction_tiles(parts: ImageReconstruction) -> list[_Tile]:
    enlarge = _enlargement(parts.image)
    height, width = parts.image.shape[-2:]
    top = max(float(parts.difference.flatten().kthvalue(max(1, int(0.999 * height * width)))[0]), 1 / 255)
    passed = parts.filter - 1
    stride = -(-height // passed.shape[-2])
    mask = F.to_pil_image(passed.float().cpu()).resize(
        (passed.shape[-1] * stride, passed.shape[-2] * stride), Image.Resampling.NEAREST
    )
    return [
        _Tile([("reconstruction", INK)], _enlarged(F.to_pil_image(parts.reconstruction.cpu()), enlarge)),
        _Tile([(f"difference, yellow {255 * top:.0f}/255", INK)], _enlarged(heat_map(parts.difference, top), enlarge)),
        _Tile(
            [(f"filter, {float(passed.mean()):.0%} passes", INK)], _enlarged(mask.crop((0, 0, width, height)), enlarge)
        ),
    ]


def _row(tiles: Sequence[_Tile]) -> Image.Image:
    width = GAP + sum(tile.picture.width + GAP for tile in tiles)
    height = TITLE_HEIGHT + max(tile.picture.height for tile in tiles) + GAP
    row = Image.new("RGB", (width, height), PAPER)
    left = GAP
    for title, picture in tiles:
        row.paste(_title(title, picture.width), (left, 0))
        row.paste(picture, (left, TITLE_HEIGHT))
        left += picture.width + GAP
    return row


def _title(title: list[tuple[str, str]], width: int) -> Image.Image:
    strip = Image.new("RGB", (width, TITLE_HEIGHT), PAPER)
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(FONT_SIZE)
    x = 0.0
    for words, colour in title:
        draw.text((x, TITLE_HEIGHT / 2), words, fill=colour, font=font, anchor="lm")
        x += draw.textlength(f"{words} ", font=font)
    return strip


def _enlarged(picture: Image.Image, factor: int) -> Image.Image:
    """Every pixel as a square: objects of a few pixels are shown as they are, not blurred."""
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _enlargement(image: Tensor) -> int:
    return -(-TILE_SIDE // max(image.shape[-2:]))


def _colour(label: int) -> str:
    return COLOURS[(label - 1) % len(COLOURS)]
