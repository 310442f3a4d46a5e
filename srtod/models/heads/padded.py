"""Detections of fixed shapes, for programs that are compiled before they see an image.

A head gives detections as a list of tensors whose lengths depend on the image. An exported program has no such list and
no loop over the images of its batch. Here all images of a batch have one size, every step works on all of them at once,
and places that are not used are marked. `Head.padded` is the counterpart of `Head.forward` in evaluation mode: both
give the same detections, up to the rounding of their sums.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import clip_boxes_to_image, nms

__all__ = ["SMALLEST_SIDE", "PaddedDetections", "clipped", "padded_topk", "pick", "select_by_class", "suppress"]

SMALLEST_SIDE = 1e-2
"""Of a detection, in pixels; torchvision's region heads have the same."""


class PaddedDetections(NamedTuple):
    """The detections of N images, best first; places behind the last one are 0.

    Attributes:
        boxes: `[N, D, 4]`, (x1, y1, x2, y2) in pixels.
        labels: `[N, D]`, int64; 0 where there is no detection.
        scores: `[N, D]` in [0, 1].
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor


def select_by_class(
    boxes: Tensor,  # [N, C, 4], in pixels, inside of the image
    scores: Tensor,  # [N, C]
    labels: Tensor,  # [N, C], int64, from 1
    valid: Tensor,  # [N, C], bool
    *,
    iou: float,
    most: int,
) -> PaddedDetections:
    """The detections among candidates: the best `most` of each image after suppression by class."""
    index, kept = suppress(boxes, scores, labels, valid, iou=iou, most=most)
    return PaddedDetections(
        pick(boxes, index).where(kept[..., None], 0),
        labels.gather(1, index).where(kept, 0),
        scores.gather(1, index).where(kept, 0),
    )


def suppress(
    boxes: Tensor,  # [N, C, 4], in pixels, inside of the image
    scores: Tensor,  # [N, C], not negative
    groups: Tensor,  # [N, C], int64, not negative
    valid: Tensor,  # [N, C], bool
    *,
    iou: float,
    most: int,
) -> tuple[Tensor, Tensor]:
    """Non-maximum suppression within each group of each image.

    One call suppresses in all images: each gets a row of its own in a common plane, and each group a column. (One axis
    for both would cost the coordinates more of their digits.)

    Returns:
        The places `[N, most]` of the kept candidates in their images, best first, and which of them are any, bool
        `[N, most]`.
    """
    images, candidates = scores.shape
    stride = boxes.flatten().amax(dim=0) + 1
    rows = torch.arange(images, device=boxes.device)[:, None].expand(-1, candidates)
    shift = torch.stack((groups, rows), dim=2).to(boxes.dtype) * stride
    apart = (boxes + shift.repeat(1, 1, 2)).flatten(0, 1)
    (considered,) = torch.where(valid.flatten())
    survivors = considered[nms(apart[considered], scores.flatten()[considered], iou)]
    survives = torch.zeros_like(scores.flatten()).index_fill(0, survivors, 1.0).view(images, candidates) > 0
    best, index, _ = padded_topk(scores.where(survives, -1.0), most)  # -1 comes behind every score
    return index, best >= 0


def padded_topk(scores: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best `most` of scores `[N, C]`, best first, also where there are fewer.

    Returns:
        Scores, places, and which of them are any, `[N, most]` each. A place that is none is 0.
    """
    values, index = F.pad(scores, (0, most), value=-torch.inf).topk(most, dim=1)
    found = index < scores.shape[1]
    return values, index.where(found, 0), found


def pick(values: Tensor, index: Tensor) -> Tensor:
    """Of `[N, C, V]` the places `[N, K]`: `[N, K, V]`."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))


def clipped(boxes: Tensor, size: tuple[int, int], least: float) -> tuple[Tensor, Tensor]:
    """Boxes `[..., 4]` clipped to an image of `size` (h, w), and which have sides of `least` pixels, bool `[...]`."""
    boxes = clip_boxes_to_image(boxes, size)
    return boxes, (boxes[..., 2:] - boxes[..., :2] >= least).all(dim=-1)
