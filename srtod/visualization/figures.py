"""Boxes, heat maps and rows of titled pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from srtod._support.names import printable
from srtod.models import ImageReconstruction

from .captions import draw_captions
from .tiles import INK, PAPER, TILE_SIDE, Tile, enlarged, grid

__all__ = ["SCORE", "draw_boxes", "draw_detections", "drawn_from", "heat_map", "panel", "reconstruction_figure"]

SCORE = 0.5  # where no evaluation has found a better one; below it detections are noise to the eye
MARGIN = 16  # pixels beyond the picture at which a box is cut: to draw one of millions of pixels takes minutes
COLOURS = ("#39d353", "#ff9f1c", "#3fa7ff", "#ff4d6d", "#c77dff", "#ffe14d", "#2ee6d6", "#ff8fd8", "#b0e64c", "#b08968")
HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))  # black, purple, red, orange, yellow


def drawn_from(metrics: Mapping[str, float]) -> float:
    """The score from which detections are drawn: that of the best F1 of an evaluation, or 0.5 if it has none.

    Args:
        metrics: of `srtod.evaluation.evaluate_detections`, or those in a checkpoint, which may be older.
    """
    score = metrics.get("F1_threshold", -1)
    return score if 0 <= score <= 1 else SCORE


def panel(
    image: Tensor,
    target: dict[str, Any],
    detections: dict[str, Tensor],
    reconstruction: ImageReconstruction | None = None,
    *,
    class_names: Sequence[str],
    score: float = SCORE,
    missed: Tensor | None = None,
) -> Image.Image:
    """One row of titled pictures: image with objects | reconstruction | difference map | filter | detections.

    Args:
        image: `[3, H, W]` in [0, 1].
        target: `boxes` `[M, 4]`, (x1, y1, x2, y2) in pixels, and `labels` `[M]` from 1.
        detections: the same with `scores` `[M]` in [0, 1].
        reconstruction: what `Detector.reconstruct` gives; None leaves out the three pictures in the middle.
        class_names: name of each class; label k is `class_names[k - 1]`.
        score: detections must score at least this to be drawn.
        missed: objects that were not found, `[K, 4]` as the other boxes, to be marked among the detections.
    """
    kept = detections["scores"] >= score
    boxes, labels = detections["boxes"][kept], detections["labels"][kept]
    tiles = [_boxes_tile("image with", image, target["boxes"], target["labels"], class_names)]
    if reconstruction is not None:
        tiles += _reconstruction_tiles(reconstruction)
    tiles.append(_boxes_tile(f"score {score:.3g} and over:", image, boxes, labels, class_names, missed=missed))
    return grid(tiles, columns=len(tiles))


def reconstruction_figure(parts: ImageReconstruction) -> Image.Image:
    """The paper's figures of one image as two rows of titled pictures.

        image   reconstruction                  difference map
        filter  P2 before the enhancement       P2 after the enhancement

    Both pictures of P2 (P3 where the detector has self-reconstruction there) have one scale, so that what the
    enhancement raises and lowers can be compared. The image is shown at the size that the detector works at.

    Args:
        parts: what `Detector.reconstruct` gives.
    """
    image = Tile([("image", INK)], enlarged(_pil(parts.image), _enlargement(parts.image)))
    return grid([image, *_reconstruction_tiles(parts), *_feature_tiles(parts)], columns=3)


def draw_detections(
    image: Tensor, detections: dict[str, Tensor], class_names: Sequence[str], *, score: float = SCORE
) -> Image.Image:
    """The image with its detections, below a title that counts them by class.

    Its score, and its class if there are several, stand beside a detection where they cover no other. Images of less
    than 512 pixels are enlarged.

    Args:
        image: `[3, H, W]` in [0, 1].
        detections: `boxes` `[M, 4]`, (x1, y1, x2, y2) in pixels, `labels` `[M]` from 1 and `scores` `[M]`, best first.
        class_names: name of each class; label k is `class_names[k - 1]`.
        score: detections must score at least this to be drawn.
    """
    kept = detections["scores"] >= score
    boxes, labels, scores = (detections[name][kept] for name in ("boxes", "labels", "scores"))
    captions = [
        f"{printable(class_names[label - 1])} {value:.2f}" if len(class_names) > 1 else f"{value:.2f}"
        for label, value in zip(labels.tolist(), scores.tolist(), strict=True)
    ]
    return grid([_boxes_tile(f"score {score:.3g} and over:", image, boxes, labels, class_names, captions)], columns=1)


def draw_boxes(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    *,
    enlarge: int = 1,
    captions: Sequence[str] | None = None,
    missed: Tensor | None = None,
) -> Image.Image:
    """The image with a thin outline just outside every box, coloured by class.

    Args:
        image: `[3, H, W]` in [0, 1].
        boxes: `[M, 4]`, (x1, y1, x2, y2) in pixels of the image.
        labels: `[M]`, from 1.
        enlarge: whole factor by which the picture is larger than the image.
        captions: words to stand beside each box where they hide no other, the first before the last.
        missed: `[K, 4]` as `boxes`: objects to be marked by a wider outline further out, white with a dark rim.
    """
    picture = enlarged(_pil(image), enlarge)
    draw = ImageDraw.Draw(picture)
    boxes = _on_picture(boxes, enlarge, picture)
    colours = [_colour(label) for label in labels.tolist()]
    for (x1, y1, x2, y2), colour in zip(boxes.tolist(), colours, strict=True):
        draw.rectangle((x1 - 1, y1 - 1, max(x1, x2), max(y1, y2)), outline=colour)
    for x1, y1, x2, y2 in [] if missed is None else _on_picture(missed, enlarge, picture).tolist():
        for distance, width, colour in ((7, 4, PAPER), (6, 2, INK)):  # the rim shows it on a bright sky
            draw.rectangle((x1 - distance, y1 - distance, x2 + distance - 1, y2 + distance - 1), None, colour, width)
    if captions is not None:
        draw_captions(draw, boxes.numpy(), captions, colours, picture.size)
    return picture


def heat_map(values: Tensor, top: float, bottom: float = 0.0) -> Image.Image:
    """Values as a picture, `bottom` and below black and `top` and above a light yellow.

    Args:
        values: `[1, H, W]`.
        top: the value that gets the lightest colour; greater than `bottom`.
        bottom: the value that gets the darkest.
    """
    colours = torch.tensor(HEAT, dtype=torch.float32)
    position = ((values[0].float().cpu() - bottom) / (top - bottom)).clamp(0, 1) * (len(HEAT) - 1)
    below = position.long().clamp(max=len(HEAT) - 2)
    share = (position - below)[..., None]
    pixels = colours[below] * (1 - share) + colours[below + 1] * share
    return Image.fromarray(pixels.round().to(torch.uint8).numpy())


def _boxes_tile(
    words: str,
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    captions: Sequence[str] | None = None,
    missed: Tensor | None = None,
) -> Tile:
    counts = sorted(Counter(labels.tolist()).items())
    title = [(words, INK)] + [
        (f"{count} {printable(class_names[label - 1])}", _colour(label)) for label, count in counts
    ]
    if not counts:
        title.append(("no object", INK))
    if missed is not None:
        title.append((f"| {len(missed)} missed", INK))
    picture = draw_boxes(image, boxes, labels, enlarge=_enlargement(image), captions=captions, missed=missed)
    return Tile(title, picture)


def _reconstruction_tiles(parts: ImageReconstruction) -> list[Tile]:
    """Reconstruction, difference map and filter."""
    enlarge = _enlargement(parts.image)
    top = max(_quantile(parts.difference, 0.999), 1 / 255)  # a few sparks would leave all else black
    passed = parts.filter - 1
    return [
        Tile([("reconstruction", INK)], enlarged(_pil(parts.reconstruction), enlarge)),
        Tile([(f"difference, yellow {255 * top:.0f}/255", INK)], enlarged(heat_map(parts.difference, top), enlarge)),
        Tile([(f"filter, {float(passed.mean()):.0%} passes", INK)], _level(_pil(passed), parts)),
    ]


def _feature_tiles(parts: ImageReconstruction) -> list[Tile]:
    """The pyramid level before and after its enhancement, on one scale."""
    name = f"P{parts.stride.bit_length() - 1}"
    both = torch.stack([parts.features, parts.enhanced])
    bottom = _quantile(both, 0.01)
    top = max(_quantile(both, 0.999), bottom + 1e-6)
    scale = f"black {bottom:.2g}, yellow {top:.2g}"
    return [
        Tile([(f"{name} {when} enhancement, {scale}", INK)], _level(heat_map(values, top, bottom), parts))
        for when, values in (("before", parts.features), ("after", parts.enhanced))
    ]


def _level(picture: Image.Image, parts: ImageReconstruction) -> Image.Image:
    """A picture of the pyramid level at the size of the image's: each of its pixels as a square of `stride` pixels."""
    height, width = parts.image.shape[-2:]
    enlarge = _enlargement(parts.image)
    return enlarged(picture, parts.stride * enlarge).crop((0, 0, width * enlarge, height * enlarge))


def _quantile(values: Tensor, share: float) -> float:
    """The value that this share of all do not exceed. (torch.quantile takes 16 million values at most.)"""
    values = values.float().flatten()
    return float(values.kthvalue(max(1, int(share * len(values))))[0])


def _on_picture(boxes: Tensor, enlarge: int, picture: Image.Image) -> Tensor:
    """Boxes [M, 4] in whole pixels of a picture, cut a little outside of it."""
    limits = torch.tensor(picture.size * 2) + MARGIN
    return (boxes.cpu() * enlarge).round().clamp(min=-MARGIN).minimum(limits)


def _pil(image: Tensor) -> Image.Image:
    return F.to_pil_image(image.float().cpu().clamp(0, 1))


def _enlargement(image: Tensor) -> int:
    return -(-TILE_SIDE // max(image.shape[-2:]))


def _colour(label: int) -> str:
    return COLOURS[(label - 1) % len(COLOURS)]
