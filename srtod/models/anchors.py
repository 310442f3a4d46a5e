"""Anchors fitted to a data set: the scale whose anchors overlap its objects best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["AnchorFit", "AnchorLayout", "best_overlaps", "fit_anchor_scale"]

MAX_SCALE = 16.0
"""The largest scale that is tried: the side of a square anchor, in strides."""

MAX_OBJECTS = 4096
"""Objects that are looked at; of more, so many evenly by area."""

POSITIONS = 4
"""Positions of an object between the anchors' centres, along each axis."""


class AnchorLayout(NamedTuple):
    """The anchors that stand at every place of every level of a pyramid, but for their scale.

    Attributes:
        strides: stride of each level, finest first, in pixels.
        ratios: height by width of the anchors.
        octaves: factors on the scale, one set of anchors each.
    """

    strides: tuple[int, ...]
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    octaves: tuple[float, ...] = (1.0,)


class AnchorFit(NamedTuple):
    """What `fit_anchor_scale` finds.

    Attributes:
        scale: side of a square anchor, in strides.
        mean_iou: mean over objects of the IoU with the best anchor, in [0, 1].
        covered: share of the objects that an anchor covers with the asked IoU, in [0, 1].
    """

    scale: float
    mean_iou: float
    covered: float


def fit_anchor_scale(
    sizes: Tensor,
    strides: Sequence[int] = (4, 8, 16, 32, 64),
    *,
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    octaves: Sequence[float] = (1.0,),
    min_iou: float = 0.5,
) -> AnchorFit:
    """Chooses the anchor scale with the highest mean, over objects, of the IoU with the best anchor.

    An anchor stands at every multiple of its level's stride, so that a tiny object between two of them is overlapped
    worse than its size alone would say, and the better the finer the level. Objects are taken to lie anywhere between
    anchors: their IoU is the mean over 4x4 positions. Scales are tried in steps of one pixel of the finest level, from
    two pixels to 16 strides; among equals the smallest wins. Nothing is random.

    Args:
        sizes: width and height of every object `[M, 2]`, or the square root of its area `[M]`, in pixels at the size
            that the detector works at; positive. Of more than 4096, so many evenly by area are looked at.
        strides: stride of each level that has anchors, finest first, in pixels.
        ratios: height by width of the anchors.
        octaves: factors on the scale, one set of anchors each; RetinaNet has 1, 2^(1/3) and 2^(2/3).
        min_iou: IoU from which an object counts as covered.

    Raises:
        ValueError: if there is no object, sizes have another shape or are not positive, or a stride, ratio or octave is
            not positive.
    """
    if sizes.dim() not in (1, 2) or (sizes.dim() == 2 and sizes.shape[1] != 2) or len(sizes) == 0:
        raise ValueError(
            f"sizes must be [M, 2], width and height, or [M], square root of the area, of at least one object, got "
            f"{list(sizes.shape)}"
        )
    sizes = sizes.detach().to("cpu", torch.float64)
    if not bool((sizes.isfinite() & (sizes > 0)).all()):
        raise ValueError("sizes must be positive and finite; leave out boxes without an area")
    if not all((strides, ratios, octaves)) or min(*strides, *ratios, *octaves) <= 0:
        raise ValueError(
            f"strides, ratios and octaves must be positive, at least one each, got {tuple(strides)}, {tuple(ratios)} "
            f"and {tuple(octaves)}"
        )
    if sizes.dim() == 1:
        sizes = sizes[:, None].expand(-1, 2)
    sizes = _evenly_by_area(sizes, MAX_OBJECTS)
    layout = AnchorLayout(tuple(strides), tuple(ratios), tuple(octaves))
    finest = min(strides)
    best: AnchorFit | None = None
    for pixels in range(2, int(MAX_SCALE * finest) + 1):
        iou = best_overlaps(sizes, pixels / finest, layout)
        mean = float(iou.mean())
        if best is None or mean > best.mean_iou + 1e-9:  # rounding must not choose between equals
            best = AnchorFit(pixels / finest, mean, float((iou >= min_iou).double().mean()))
    assert best is not None
    return best


def best_overlaps(sizes: Tensor, scale: float, layout: AnchorLayout) -> Tensor:
    """The IoU `[M]` of every object with its best anchor, the mean over its places, see `fit_anchor_scale`.

    Args:
        sizes: width and height of every object `[M, 2]`, float64, in pixels at the size that the detector works at.
        scale: side of a square anchor, in strides.
        layout: the anchors.
    """
    shapes = torch.tensor(layout.ratios, dtype=torch.float64)
    unit = torch.stack([shapes.rsqrt(), shapes.sqrt()], dim=1)  # width and height of an anchor of area 1
    iou = torch.zeros(len(sizes), dtype=torch.float64)
    for stride in layout.strides:
        anchors = torch.cat([unit * (scale * octave * stride) for octave in layout.octaves])
        found = [_mean_iou(part, anchors, stride).amax(dim=1) for part in sizes.split(MAX_OBJECTS)]
        iou = torch.maximum(iou, torch.cat(found))
    return iou


def _evenly_by_area(sizes: Tensor, limit: int) -> Tensor:
    """At most `limit` of the sizes `[M, 2]`, evenly spaced in their order by area."""
    if len(sizes) <= limit:
        return sizes
    order = sizes.prod(dim=1).argsort(stable=True)
    return sizes[order[torch.linspace(0, len(sizes) - 1, limit, dtype=torch.float64).round().long()]]


def _mean_iou(sizes: Tensor, anchors: Tensor, stride: int) -> Tensor:
    """IoU `[M, A]` of objects `[M, 2]` with the nearest anchor of each shape `[A, 2]`, the mean over positions.

    Along an axis the nearest centre is at most half a stride away, each distance being equally likely.
    """
    distances = (torch.arange(POSITIONS, dtype=torch.float64) + 0.5) / POSITIONS * stride / 2
    half = (sizes[:, None] + anchors) / 2  # [M, A, 2]
    overlap = (half[..., None] - distances).clamp(min=0)  # [M, A, 2, POSITIONS]
    overlap = torch.minimum(overlap, torch.minimum(sizes[:, None], anchors)[..., None])
    intersection = overlap[:, :, 0, :, None] * overlap[:, :, 1, None, :]
    union = (sizes.prod(dim=1)[:, None] + anchors.prod(dim=1))[..., None, None] - intersection
    return (intersection / union).mean(dim=(2, 3))
