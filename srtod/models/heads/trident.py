"""The head of TridentNet (Li et al., "Scale-Aware Trident Networks for Object Detection", ICCV 2019)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from ..boxes import areas
from .two_stage import TwoStageHead

__all__ = ["DILATIONS", "TridentHead"]

DILATIONS = (1, 2, 3)
"""Of the branches."""

EVERY_SIZE = (0.0, math.inf)

VALID_RANGES = ((0.0, 90.0), EVERY_SIZE, (90.0, math.inf))
"""Sizes of the objects that each branch learns, in pixels of the batch. The paper has 30 to 160 for the middle branch,
which then learns no tiny object; here it learns all, since in evaluation there is no other branch."""


class TridentHead(TwoStageHead):
    """The head of Faster R-CNN, shared by the branches of the features, each of which learns objects of its sizes.

    In training the features hold every image once a branch, all images of the first branch first. Objects whose size
    lies outside of a branch's range are ignore regions to it: neither objects nor background. In evaluation the
    features are those of the middle branch, the paper's fast approximation.

    Of regions 128 an image and branch are sampled, half of them positive, as in the paper.

    Args:
        channels: channels of the pyramid.
        num_classes: number of classes, background included.
        scale_aware: whether branches have ranges (`VALID_RANGES`). Otherwise each learns all objects, as in the code of
            SR-TOD's authors.
        options: of `TwoStageHead`.
    """

    def __init__(self, channels: int, num_classes: int, *, scale_aware: bool = True, **options: Any) -> None:
        super().__init__(channels, num_classes, batch_size_per_image=128, positive_fraction=0.5, **options)
        self.valid_ranges = VALID_RANGES if scale_aware else (EVERY_SIZE,) * len(DILATIONS)

    def forward(
        self, batch: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """See `srtod.models.heads` and `TwoStageHead`.

        Raises:
            ValueError: if there are targets, but not of each image once a branch.
        """
        if targets is not None:
            branches = len(self.valid_ranges)
            if len(targets) % branches:
                raise ValueError(
                    f"the batch must hold every image {branches} times, once a branch, got {len(targets)} targets; "
                    f"build the transform with copies={branches}"
                )
            images = len(targets) // branches
            targets = [
                _only_between(*self.valid_ranges[index // images], target) for index, target in enumerate(targets)
            ]
        return super().forward(batch, features, targets)


def _only_between(least: float, most: float, target: dict[str, Tensor]) -> dict[str, Tensor]:
    """The target of an image whose objects have a size, the square root of the area, in a range of pixels.

    The others are ignore regions.
    """
    boxes = target["boxes"]
    sizes = areas(boxes).sqrt()
    valid = (sizes >= least) & (sizes <= most)
    regions = [target["ignore"]] if "ignore" in target else []
    return target | {
        "boxes": boxes[valid],
        "labels": target["labels"][valid],
        "ignore": torch.cat([*regions, boxes[~valid]]),
    }
