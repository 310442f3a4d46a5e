"""The head of FCOS.

Tian et al., "FCOS: Fully Convolutional One-Stage Object Detection", 2019, and "FCOS: A Simple and Strong Anchor-Free
Object Detector", 2020.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.ops import generalized_box_iou_loss

from ..assigners import FCOSAssigner
from .anchor_generator import PyramidAnchors
from .dense import DenseHead

__all__ = ["FCOSHead"]

LARGEST_EXPONENT = 5.0  # distances up to 148 strides; exp of an untrained regression cannot overflow


class FCOSHead(DenseHead):
    """Classifies locations and regresses their distances to the sides of their object's box, without anchors.

    Locations are given to objects by `FCOSAssigner`. The regression is `exp(s x)` strides, with a factor s learnt for
    each level. Centerness is predicted from the box tower; the towers normalise in groups. As in the authors'
    implementation, the GIoU loss of a location is weighted by its centerness and divided by the sum of the weights.

    Args:
        channels: channels of the pyramid.
        num_classes: number of classes, background included.
        strides: stride of each level, in pixels (P3 to P7).
        radius, limits: see `FCOSAssigner`. By the paper's limits all objects of at most 64 pixels are on the finest
            level; smaller limits spread them over more levels.
        detections_per_image: the most detections an image.
        score_threshold: detections must score above this.
        nms_threshold: IoU above which the lower-scoring of two detections of a class is dropped (paper: 0.6).
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        radius: float | None = 1.5,
        limits: Sequence[float] | None = None,
        detections_per_image: int = 100,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
    ) -> None:
        super().__init__(
            channels,
            num_classes,
            PyramidAnchors(strides, [(float(stride),) for stride in strides], (1.0,)),
            strides=strides,
            centerness=True,
            scale_levels=True,
            group_norm=True,
            detections_per_image=detections_per_image,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
        )
        self.assigner = FCOSAssigner(strides, radius=radius, limits=limits)
        self.box_coder = BoxLinearCoder(normalize_by_size=True)  # a prior's side is the stride

    def assign(self, boxes: Tensor, priors: list[Tensor]) -> Tensor:
        """See `DenseHead`."""
        return self.assigner(boxes, torch.cat(priors), level_sizes=[len(level) for level in priors])

    def decode(self, regression: Tensor, priors: Tensor) -> Tensor:
        """See `DenseHead`. Beyond the largest exponent distances grow linearly, so that there is a way back."""
        excess = (regression - LARGEST_EXPONENT).clamp(min=0)
        distances = regression.clamp(max=LARGEST_EXPONENT).exp() + excess * math.exp(LARGEST_EXPONENT)
        boxes: Tensor = self.box_coder.decode(distances, priors)
        return boxes

    def box_loss(self, regression: Tensor, priors: Tensor, boxes: Tensor) -> Tensor:
        """See `DenseHead`: the GIoU loss."""
        loss: Tensor = generalized_box_iou_loss(self.decode(regression, priors), boxes)
        return loss
