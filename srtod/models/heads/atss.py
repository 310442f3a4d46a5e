"""The head of ATSS.

Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training Sample Selection",
2020.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from ..assigners import ATSSAssigner
from ..boxes import BoxCoder
from .anchor_generator import PyramidAnchors
from .dense import DenseHead

__all__ = ["ATSSHead"]


class ATSSHead(DenseHead):
    """Classifies and regresses one square anchor a location, chosen for an object by the statistics of its IoUs.

    Everything but the assignment is as in `FCOSHead`: centerness from the box tower, a factor on the regression learnt
    for each level, normalisation in groups, and a GIoU loss weighted by centerness.

    Args:
        channels: channels of the pyramid.
        num_classes: number of classes, background included.
        anchor_scale: side of an anchor, in strides.
        strides: stride of each level, in pixels (P3 to P7).
        topk: how many anchors of each level, the closest to an object's centre, are its candidates.
        box_loss_weight: factor on the box loss; the authors' implementation has 2.
        tower_depth: see `DenseHead`.
        detections_per_image: the most detections an image.
        score_threshold: detections must score above this.
        nms_threshold: IoU above which the lower-scoring of two detections of a class is dropped (paper: 0.6).
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        anchor_scale: float = 8,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        topk: int = 9,
        box_loss_weight: float = 2.0,
        tower_depth: int = 4,
        detections_per_image: int = 100,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
    ) -> None:
        super().__init__(
            channels,
            num_classes,
            PyramidAnchors(strides, [(anchor_scale * stride,) for stride in strides], (1.0,)),
            strides=strides,
            centerness=True,
            scale_levels=True,
            group_norm=True,
            tower_depth=tower_depth,
            detections_per_image=detections_per_image,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
        )
        self.box_loss_weight = box_loss_weight
        self.assigner = ATSSAssigner(topk=topk)
        self.box_coder = BoxCoder(stds=(0.1, 0.1, 0.2, 0.2))

    def assign(self, boxes: Tensor, priors: list[Tensor]) -> Tensor:
        """See `DenseHead`."""
        return self.assigner(boxes, torch.cat(priors), level_sizes=[len(level) for level in priors])

    def decode(self, regression: Tensor, priors: Tensor) -> Tensor:
        """See `DenseHead`."""
        return self.box_coder.decode(regression, priors)

    def box_loss(self, regression: Tensor, priors: Tensor, boxes: Tensor) -> Tensor:
        """See `DenseHead`: the GIoU loss, times `box_loss_weight`."""
        loss: Tensor = generalized_box_iou_loss(self.decode(regression, priors), boxes)
        return loss * self.box_loss_weight
