"""The assignment of ATSS."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..boxes import centres, paired_iou
from .blocks import SquaredDistance, make_blocks, nearest
from .owners import all_background, best_object, check, check_level_sizes

__all__ = ["ATSSAssigner"]


class ATSSAssigner:
    """Adaptive training sample selection (Zhang et al., "Bridging the Gap", CVPR 2020, algorithm 1).

    An object's candidates are the `topk` priors of each level whose centres are nearest to its own. It takes those
    whose IoU with it is at least the mean plus the standard deviation (the unbiased one, as in the released code) of
    its candidates' IoUs, and whose centre lies inside it. A prior that several objects take goes to the one with the
    highest IoU.

    Args:
        topk: candidates per level and object.
        level_sizes: number of priors of each level, in the order of `priors`; may also be given with each call.

    Raises:
        ValueError: if `topk` is not positive.
    """

    def __init__(self, topk: int = 9, level_sizes: Sequence[int] | None = None) -> None:
        if topk < 1:
            raise ValueError(f"topk must be at least 1, got {topk}")
        self.topk = topk
        self.level_sizes = level_sizes

    @torch.no_grad()
    def __call__(
        self,
        gt_boxes: Tensor,  # [M, 4], in pixels
        priors: Tensor,  # [P, 4], in pixels
        level_sizes: Sequence[int] | None = None,
    ) -> Tensor:
        """The object of each prior, `[P]`, see `srtod.models.assigners`; there are no ignored ones.

        Raises:
            ValueError: if boxes have the wrong shape, are not finite or have sides that are not positive, or the level
                sizes are missing or do not add up to the number of priors.
        """
        gt_boxes, priors = check(gt_boxes, priors)
        level_sizes = self.level_sizes if level_sizes is None else level_sizes
        if level_sizes is None:
            raise ValueError("give level_sizes, the number of priors of each level, to ATSSAssigner or to its call")
        check_level_sizes(level_sizes, priors)
        if len(gt_boxes) == 0 or len(priors) == 0:
            return all_background(priors)
        objects = centres(gt_boxes).T
        starts = [sum(level_sizes[:level]) for level in range(len(level_sizes))]
        candidates = torch.cat(
            [
                start + nearest(objects, centres(level).T, make_blocks(level), self.topk, SquaredDistance()).priors
                for start, level in zip(starts, priors.split(list(level_sizes)), strict=True)
                if len(level) > 0
            ],
            dim=1,
        )
        boxes, chosen = gt_boxes[:, None], priors[candidates]
        iou = paired_iou(boxes, chosen)
        mean, std = iou.mean(dim=1, keepdim=True), iou.new_zeros(len(iou), 1)
        if iou.shape[1] > 1:
            std = iou.std(dim=1, keepdim=True)
        own_centres = centres(chosen)
        inside = ((own_centres > boxes[..., :2]) & (own_centres < boxes[..., 2:])).all(dim=-1)
        asking, slots = ((iou >= mean + std) & inside).nonzero().unbind(dim=1)
        return best_object(asking, candidates[asking, slots], iou[asking, slots], len(gt_boxes), len(priors))
