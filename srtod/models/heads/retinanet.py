"""The head of RetinaNet (Lin et al., "Focal Loss for Dense Object Detection", 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..assigners import MaxIoUAssigner
from ..boxes import BoxCoder
from .anchor_generator import PyramidAnchors
from .dense import DenseHead

__all__ = ["RetinaNetHead"]

OCTAVE_SCALES = tuple(2 ** (step / 3) for step in range(3))


class RetinaNetHead(DenseHead):
    """Classifies and regresses nine anchors a location: three sizes, a third of an octave apart, in three ratios.

    An anchor belongs to the object it overlaps most with, if their IoU is at least 0.5; below 0.4 it is background, and
    in between ignored. The anchors that overlap most with an object belong to an object whatever their IoU, without
    which most tiny objects would have none. The box loss is L1 on the encoded boxes, divided by the positive anchors.

    Args:
        channels: channels of the pyramid.
        num_classes: number of classes, background included.
        anchor_scale: side of the smallest square anchor, in strides.
        strides: stride of each level, in pixels (P3 to P7).
        detections_per_image: the most detections an image.
        score_threshold: detections must score above this.
        nms_threshold: IoU above which the lower-scoring of two detections of a class is dropped.
        beta: where the box loss turns from quadratic to linear (SmoothL1); 0 for L1.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        anchor_scale: float = 4,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        detections_per_image: int = 100,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        beta: float = 0.0,
    ) -> None:
        sizes = tuple(tuple(anchor_scale * stride * octave for octave in OCTAVE_SCALES) for stride in strides)
        super().__init__(
            channels,
            num_classes,
            PyramidAnchors(strides, sizes),
            strides=strides,
            offset=0,  # torchvision's convention
            detections_per_image=detections_per_image,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
        )
        self.beta = beta
        self.assigner = MaxIoUAssigner(0.5, 0.4)
        self.box_coder = BoxCoder()

    def assign(self, boxes: Tensor, priors: list[Tensor]) -> Tensor:
        """See `DenseHead`."""
        return self.assigner(boxes, torch.cat(priors))

    def decode(self, regression: Tensor, priors: Tensor) -> Tensor:
        """See `DenseHead`."""
        return self.box_coder.decode(regression, priors)

    def box_loss(self, regression: Tensor, priors: Tensor, boxes: Tensor) -> Tensor:
        """See `DenseHead`; summed over the four coordinates."""
        encoded = self.box_coder.encode(boxes, priors)
        return F.smooth_l1_loss(regression, encoded, beta=self.beta, reduction="none").sum(dim=1)
