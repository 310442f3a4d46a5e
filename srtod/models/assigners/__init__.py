"""Assigners: which prior (an anchor, a receptive field, a location, a proposal) has to find which object in training.

Every assigner is called as `assigner(gt_boxes, priors)` with (x1, y1, x2, y2) in pixels, `[M, 4]` and `[P, 4]`, and
gives `[P]`, int64: the index of the prior's object, -1 for background, -2 for priors to be left out of the loss.
Without objects all is background. `ATSSAssigner`, `FCOSAssigner` and `RegionAssigner` also need `level_sizes`, the
number of priors of each level. No gradients are recorded, and the inputs are never modified. Of equal scores the lowest
index wins, of priors and of objects alike. `without_negatives_inside` takes the background out of ignore regions,
whatever the assigner.
"""

from .atss import ATSSAssigner
from .fcos import FCOSAssigner
from .hierarchical import HierarchicalAssigner
from .max_iou import MaxIoUAssigner
from .owners import BACKGROUND, IGNORED, without_negatives_inside
from .region import RegionAssigner

__all__ = [
    "BACKGROUND",
    "IGNORED",
    "ATSSAssigner",
    "FCOSAssigner",
    "HierarchicalAssigner",
    "MaxIoUAssigner",
    "RegionAssigner",
    "without_negatives_inside",
]
