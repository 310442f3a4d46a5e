"""The head of FCOS.

Tian et al., "FCOS: Fully Convolutional One-Stage Object Detection", 2019, and "FCOS: A Simple and Strong Anchor-Free
Object Detector", 2020.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.ops import generalized_box_iou_loss

from .anchor_generator import PyramidAnchors
from .dense import DenseHead

__all__ = ["FCOSAssigner", "FCOSHead"]

LIMIT_IN_STRIDES = 8  # the paper's limits 64, 128, 256 and 512 pixels at strides 8 to 64
LARGEST_EXPONENT = 5.0  # distances up to 148 strides; exp of an untrained regression cannot overflow
PAIRS_AT_ONCE = 2**22  # of locations and objects; 4 MiB for each of the few boolean tensors


class FCOSAssigner:
    """Gives locations to objects by level, centre and size (Tian et al. 2019, section 3; 2020, section 3.1).

    A location belongs to an object if it lies inside its box, at most `radius` strides from its centre in x and in y,
    and the largest of its distances to the box's sides is in the range of the location's level, limits included. Of
    several such objects it belongs to the one with the smallest area, the first among equals. An object between
    locations, which only one smaller than the stride can be, has none.

    Args:
        strides: stride of each level, in pixels.
        radius: of the centre region, in strides; None: the whole box.
        limits: the largest distance to a side on each level but the last, ascending, in pixels; the next level begins
            where one ends. None: 8 strides, the paper's 64, 128, 256 and 512 pixels.

    Raises:
        ValueError: if the limits do not fit the strides or do not ascend.
    """

    def __init__(
        self, strides: Sequence[int], *, radius: float | None = 1.5, limits: Sequence[float] | None = None
    ) -> None:
        if limits is None:
            limits = [LIMIT_IN_STRIDES * stride for stride in strides[:-1]]
        if len(limits) != len(strides) - 1 or sorted(set(limits)) != list(limits):
            raise ValueError(f"{len(strides)} levels need {len(strides) - 1} ascending limits, got {list(limits)}")
        self.strides = tuple(strides)
        self.radius = radius
        self.limits = (0.0, *limits, float("inf"))

    def __call__(self, gt_boxes: Tensor, priors: Tensor, level_sizes: Sequence[int]) -> Tensor:
        """Assigns the locations of an image.

        Args:
            gt_boxes: the objects, `[M, 4]`, (x1, y1, x2, y2) in pixels; M may be 0.
            priors: boxes around the locations, of all levels, `[P, 4]`.
            level_sizes: number of locations of each level; P in all.

        Returns:
            `[P]`, int64: the index of the object, -1 background.
        """
        # By area, so that the least rank wins; stable, so that of equals the first does.
        order = ((gt_boxes[:, 2] - gt_boxes[:, 0]) * (gt_boxes[:, 3] - gt_boxes[:, 1])).argsort(stable=True)
        boxes = gt_boxes[order]
        centres = (priors[:, :2] + priors[:, 2:]) / 2
        ranks = torch.full((len(priors),), len(boxes), device=priors.device)
        start = 0
        for level, size in enumerate(level_sizes):
            for chunk in centres[start : start + size].split(max(1, PAIRS_AT_ONCE // max(1, len(boxes)))):
                locations, objects = self._pairs(boxes, chunk, level)
                ranks.scatter_reduce_(0, locations + start, objects, "amin")
                start += len(chunk)
        return F.pad(order, (0, 1), value=-1)[ranks]

    def _pairs(self, boxes: Tensor, centres: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Which locations `[p, 2]` of a level may belong to which boxes `[M, 4]`: indices of both, `[K]` each."""
        lower, upper = boxes[:, :2], boxes[:, 2:]
        if self.radius is not None:
            middles, reach = (lower + upper) / 2, self.radius * self.strides[level]
            lower, upper = torch.maximum(lower, middles - reach), torch.minimum(upper, middles + reach)
        x, y = centres[:, :1], centres[:, 1:]  # [p, 1], against the objects [M]
        inside = (x > lower[:, 0]) & (x < upper[:, 0]) & (y > lower[:, 1]) & (y < upper[:, 1])
        locations, objects = inside.nonzero().unbind(dim=1)
        points, sides = centres[locations], boxes[objects]
        furthest = torch.cat([points - sides[:, :2], sides[:, 2:] - points], dim=1).amax(dim=1)
        in_range = (furthest >= self.limits[level]) & (furthest <= self.limits[level + 1])
        return locations[in_range], objects[in_range]


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
