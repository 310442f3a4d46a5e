"""torchvision's RoI heads for images of thousands of objects."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchvision.models.detection import roi_heads

from ..assigners import MaxIoUAssigner

__all__ = ["RoIHeads"]


class RoIHeads(roi_heads.RoIHeads):
    """torchvision's, but regions get their objects from `MaxIoUAssigner`, which needs no matrix of all their IoUs.

    That matrix takes a gigabyte for 5,000 objects and 2,000 proposals.

    Args:
        fg_iou_thresh: IoU from which a region belongs to an object; all others are background.
        options: see `torchvision.models.detection.roi_heads.RoIHeads`.
    """

    def __init__(self, *, fg_iou_thresh: float, **options: Any) -> None:
        super().__init__(fg_iou_thresh=fg_iou_thresh, bg_iou_thresh=fg_iou_thresh, **options)
        self.assigner = MaxIoUAssigner(fg_iou_thresh, fg_iou_thresh, low_quality=False)

    def assign_targets_to_proposals(
        self, proposals: list[Tensor], gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Of each region of each image its object, `[K_n]`, 0 where it has none, and its label, 0 for background."""
        matched, labels = [], []
        for regions, boxes, classes in zip(proposals, gt_boxes, gt_labels, strict=True):
            owners = self.assigner(boxes, regions)
            matched.append(owners.clamp(min=0))
            none = classes.new_zeros(len(regions)) if len(classes) == 0 else classes[matched[-1]]
            labels.append(none.where(owners >= 0, 0))
        return matched, labels
