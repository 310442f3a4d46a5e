"""Boxes, heat maps and rows of titled pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional as F

from srtod._support.names import printable
from srtod.evaluation.outcomes import Outcomes
from srtod.models import ImageReconstruction

from .captions import draw_captions
from .marks import FALSE_ALARM, HIT, MISSED, NOT_COUNTED, Kind, Mark, draw_marks, swatch
from .tiles import INK, TILE_SIDE, Tile, enlarged, grid

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
    outcomes: Outcomes | None = None,
) -> Image.Image:
    """One row of titled pictures: image with objects | reconstruction | difference map | filter | detections.

    The filter is left out where the detector has none (`enhancement="none"`).

    Objects are coloured by class. So are detections, unless their outcomes are given.

    Args:
        image: `[3, H, W]` in [0, 1].
        target: `boxes` `[M, 4]`, (x1, y1, x2, y2) in pixels, and `labels` `[M]` from 1.
        detections: the same with `scores` `[M]` in [0, 1].
        reconstruction: what `Detector.reconstruct` gives; None leaves out the pictures in the middle.
        class_names: name of each class; label k is `class_names[k - 1]`.
        score: detections must score at least this to be drawn.
        outcomes: of the image, at this score, to tell hits, false alarms and missed objects apart; see
            `srtod.evaluation.outcomes`.
    """
    tiles = [_boxes_tile("image with", image, target["boxes"], target["labels"], class_names)]
    if reconstruction is not None:
        tiles += _reconstruction_tiles(reconstruction)
    tiles.append(_detections_tile(image, detections, class_names, score, outcomes))
    return grid(tiles, columns=len(tiles))


def reconstruction_figure(parts: ImageReconstruction) -> Image.Image:
    """The paper's figures of one image as two rows of titled pictures.

        image   reconstruction                  difference map
        filter  P2 before the enhancement       P2 after the enhancement

    The second row is P2 alone where the detector has no filter (`enhancement="none"`).

    Both pictures of P2 (P3 where the detector has self-reconstruction there) have one scale, so that what the
    enhancement raises and lowers can be compared. The image is shown at the size that the detector works at.

    Args:
        parts: what `Detector.reconstruct` gives.
    """
    image = Tile([("image", INK)], enlarged(_pil(parts.image), _enlargement(parts.image)))
    return grid([image, *_reconstruction_tiles(parts), *_feature_tiles(parts)], columns=3)


def draw_detections(
    image: Tensor,
    detections: dict[str, Tensor],
    class_names: Sequence[str],
    *,
    score: float = SCORE,
    outcomes: Outcomes | None = None,
) -> Image.Image:
    """The image with its detections, below a title that counts them by class.

    Its score, and its class if there are several, stand beside a detection where they cover no other. Images of less
    than 512 pixels are enlarged.

    Args:
        image: `[3, H, W]` in [0, 1].
        detections: `boxes` `[M, 4]`, (x1, y1, x2, y2) in pixels, `labels` `[M]` from 1 and `scores` `[M]`, best first.
        class_names: name of each class; label k is `class_names[k - 1]`.
        score: detections must score at least this to be drawn.
        outcomes: as in `panel`; the title counts them in place of the classes.
    """
    captions = [
        f"{printable(class_names[label - 1])} {value:.2f}" if len(class_names) > 1 else f"{value:.2f}"
        for label, value in zip(detections["labels"].tolist(), detections["scores"].tolist(), strict=True)
    ]
    return grid([_detections_tile(image, detections, class_names, score, outcomes, captions)], columns=1)


def draw_boxes(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    *,
    enlarge: int = 1,
    captions: Sequence[str] | None = None,
) -> Image.Image:
    """The image with a thin outline just outside every box, coloured by class, with a dark rim.

    Args:
        image: `[3, H, W]` in [0, 1].
        boxes: `[M, 4]`, (x1, y1, x2, y2) in pixels of the image.
        labels: `[M]`, from 1.
        enlarge: whole factor by which the picture is larger than the image.
        captions: words to stand beside each box where they hide no other, the first before the last.
    """
    return _marked(image, boxes, [Kind("box", _colour(label)) for label in labels.tolist()], enlarge, captions)


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
) -> Tile:
    counts = sorted(Counter(labels.tolist()).items())
    title = [(words, INK)] + [
        (f"{count} {printable(class_names[label - 1])}", _colour(label)) for label, count in counts
    ]
    if not counts:
        title.append(("no object", INK))
    return Tile(title, draw_boxes(image, boxes, labels, enlarge=_enlargement(image), captions=captions))


def _detections_tile(
    image: Tensor,
    detections: dict[str, Tensor],
    class_names: Sequence[str],
    score: float,
    outcomes: Outcomes | None,
    captions: Sequence[str] | None = None,
) -> Tile:
    """The detections from a score on, by class, or by outcome with the missed objects and a legend."""
    words = f"from score {score:.3g}:"
    if outcomes is None:
        kept = (detections["scores"] >= score).nonzero().flatten()
        shown = None if captions is None else [captions[index] for index in kept.tolist()]
        return _boxes_tile(words, image, detections["boxes"][kept], detections["labels"][kept], class_names, shown)
    missed = torch.tensor([entry["bbox"] for entry in outcomes.missed], dtype=torch.float32).reshape(-1, 4)
    positions = [*outcomes.hits, *outcomes.false_alarms, *outcomes.ignored]
    boxes = torch.cat([detections["boxes"][positions].cpu(), box_convert(missed, "xywh", "xyxy")])
    title: list[tuple[str, str] | Image.Image] = [(words, INK)]
    kinds = []
    for kind, count, name in (
        (HIT, len(outcomes.hits), "hit"),
        (FALSE_ALARM, len(outcomes.false_alarms), "false alarm"),
        (NOT_COUNTED, len(outcomes.ignored), "not counted"),
        (MISSED, len(missed), "missed"),
    ):
        kinds += [kind] * count
        if count or kind != NOT_COUNTED:
            plural = "s" if count != 1 and kind in (HIT, FALSE_ALARM) else ""
            title += [swatch(kind), (f"{count} {name}{plural}", kind.colour)]
    shown = None if captions is None else [*(captions[index] for index in positions), *[""] * len(missed)]
    return Tile(title, _marked(image, boxes, kinds, _enlargement(image), shown))


def _marked(
    image: Tensor, boxes: Tensor, kinds: Sequence[Kind], enlarge: int, captions: Sequence[str] | None
) -> Image.Image:
    """The image with a mark around every box, and captions beside them."""
    picture = enlarged(_pil(image), enlarge)
    draw = ImageDraw.Draw(picture)
    boxes = _on_picture(boxes, enlarge, picture)
    draw_marks(draw, [Mark(tuple(box), kind) for box, kind in zip(boxes.tolist(), kinds, strict=True)])
    if captions is not None:
        draw_captions(draw, boxes.numpy(), captions, [kind.colour for kind in kinds], picture.size)
    return picture


def _reconstruction_tiles(parts: ImageReconstruction) -> list[Tile]:
    """Reconstruction, difference map and filter, if there is one."""
    enlarge = _enlargement(parts.image)
    top = max(_quantile(parts.difference, 0.999), 1 / 255)  # a few sparks would leave all else black
    tiles = [
        Tile([("reconstruction", INK)], enlarged(_pil(parts.reconstruction), enlarge)),
        Tile([(f"difference, yellow {255 * top:.0f}/255", INK)], enlarged(heat_map(parts.difference, top), enlarge)),
    ]
    if parts.filter is not None:
        passed = parts.filter - 1
        tiles.append(Tile([(f"filter, {float(passed.mean()):.0%} passes", INK)], _level(_pil(passed), parts)))
    return tiles


def _feature_tiles(parts: ImageReconstruction) -> list[Tile]:
    """The pyramid level, before and after its enhancement on one scale if there is one."""
    name = f"P{parts.stride.bit_length() - 1}"
    shown = {name: parts.features}
    if parts.enhanced is not None:
        shown = {f"{name} before enhancement": parts.features, f"{name} after enhancement": parts.enhanced}
    both = torch.stack([*shown.values()])
    bottom = _quantile(both, 0.01)
    top = max(_quantile(both, 0.999), bottom + 1e-6)
    scale = f"black {bottom:.2g}, yellow {top:.2g}"
    return [
        Tile([(f"{title}, {scale}", INK)], _level(heat_map(values, top, bottom), parts))
        for title, values in shown.items()
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
