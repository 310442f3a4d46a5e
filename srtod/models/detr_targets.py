"""Targets of the detectors with queries as `transformers` has them, and ignore regions, which it does not know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_convert

__all__ = ["IgnoringRegions", "relative_target"]

SILENT = -200.0
"""A logit whose loss as background, and its gradient, are exactly 0 in float32."""


class IgnoringRegions:
    """A loss function of the library, to which queries in ignore regions are sure to be background.

    Args:
        loss: the library's function.
        batch_dim: the dimension of the images in the predictions of all layers.
    """

    def __init__(self, loss: Any, batch_dim: int) -> None:
        self.loss = loss
        self.batch_dim = batch_dim

    def __call__(
        self, logits: Tensor, labels: Any, device: Any, pred_boxes: Tensor, config: Any, classes: Tensor,
        boxes: Tensor, enc_topk_logits: Tensor | None = None, enc_topk_bboxes: Tensor | None = None, **others: Any,
    ) -> Any:  # fmt: skip
        if any(len(label["ignore"]) for label in labels):
            classes = _silenced(classes, boxes, labels, self.batch_dim)
            logits = classes.select(1 - self.batch_dim, -1)
            if enc_topk_logits is not None:
                enc_topk_logits = _silenced(enc_topk_logits, enc_topk_bboxes, labels, 0)
        if enc_topk_logits is not None:
            others |= {"enc_topk_logits": enc_topk_logits, "enc_topk_bboxes": enc_topk_bboxes}
        return self.loss(logits, labels, device, pred_boxes, config, classes, boxes, **others)


def _silenced(logits: Tensor, boxes: Any, labels: Sequence[Mapping[str, Tensor]], batch_dim: int) -> Tensor:
    """The logits `[..., Q, K]`, very low where a box `[..., Q, 4]` is centred in an ignore region and in no object."""
    kept = []
    for own, centres, label in zip(logits.unbind(batch_dim), boxes[..., :2].unbind(batch_dim), labels, strict=True):
        ignored = _within(centres, label["ignore"]) & ~_within(centres, label["boxes"])
        kept.append(own.masked_fill(ignored[..., None], SILENT))
    return torch.stack(kept, dim=batch_dim)


def _within(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether points `[..., 2]` lie in one of the boxes `[M, 4]`, (cx, cy, w, h): bool `[...]`."""
    distance = (points[..., None, :] - boxes[:, :2]).abs()
    return (distance <= boxes[:, 2:] / 2).all(dim=-1).any(dim=-1)


def relative_target(target: Mapping[str, Tensor], batch: ImageList) -> dict[str, Tensor]:
    """A target as the library has it: classes from 0, and boxes (cx, cy, w, h) as shares of the batch's sides."""
    height, width = batch.tensors.shape[-2:]
    sides = target["boxes"].new_tensor([width, height, width, height])
    regions = target.get("ignore", target["boxes"][:0])
    return {
        "class_labels": target["labels"] - 1,
        "boxes": box_convert(target["boxes"], "xyxy", "cxcywh") / sides,
        "ignore": box_convert(regions, "xyxy", "cxcywh") / sides,
    }
