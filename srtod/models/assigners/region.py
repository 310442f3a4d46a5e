"""The assignment of Cascade RPN's first stage."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..boxes import areas, centres
from .owners import all_background, best_object, check, check_level_sizes

__all__ = ["RegionAssigner"]


class RegionAssigner:
    """Gives the anchors in the middle of an object to it, whatever their shape (Vu et al., "Cascade RPN", NeurIPS 2019;
    Wang et al., "Region Proposal by Guided Anchoring", CVPR 2019).

    An object belongs to the level whose square anchors are nearest to its size, in octaves. There it takes the anchors
    with a centre in its centre region, whose sides are `fraction` of its own and whose corners are moved to the nearest
    centres. So an object between all centres has the nearest one. An anchor in several regions goes to the smallest
    object, the first among equals.

    The paper also takes anchors around the region and on the levels beside out of the background. A stage without
    classification has no background, so there are no such anchors here.

    Args:
        strides: stride of each level, in pixels.
        anchor_scale: side of the anchors, in strides.
        fraction: of a region's sides, in sides of the object.

    Raises:
        ValueError: if the fraction is not in [0, 1].
    """

    def __init__(self, strides: Sequence[int], anchor_scale: float, fraction: float = 0.2) -> None:
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction must be from 0 to 1, got {fraction}")
        self.strides = tuple(strides)
        self.anchor_scale = anchor_scale
        self.fraction = fraction

    @torch.no_grad()
    def __call__(
        self,
        gt_boxes: Tensor,  # [M, 4], in pixels
        priors: Tensor,  # [P, 4], in pixels
        level_sizes: Sequence[int],
    ) -> Tensor:
        """The object of each anchor, `[P]`, see `srtod.models.assigners`; there are no ignored ones.

        Args:
            gt_boxes: the objects.
            priors: one anchor at each place of each level, in rows; only their centres matter.
            level_sizes: number of anchors of each level, in the order of `priors`; at least one.

        Raises:
            ValueError: if boxes have the wrong shape, are not finite or have sides that are not positive, or the level
                sizes do not add up to the number of priors.
        """
        gt_boxes, priors = check(gt_boxes, priors)
        check_level_sizes(level_sizes, priors)
        if len(gt_boxes) == 0:
            return all_background(priors)
        levels = self._levels(gt_boxes)
        stride = torch.tensor(self.strides, device=priors.device)[levels, None]
        of_levels = centres(priors).split(list(level_sizes))
        first = torch.stack([level[0] for level in of_levels])[levels]  # [M, 2], the centre in the upper left corner
        last = torch.stack([level[-1] for level in of_levels])[levels]
        end = ((last - first) / stride).round().long()  # column and row of the last place
        middle, reach = centres(gt_boxes), (gt_boxes[:, 2:] - gt_boxes[:, :2]) * (self.fraction / 2)
        lower, upper = (
            ((corner - first) / stride).round().long().clamp(min=torch.zeros_like(end), max=end)
            for corner in (middle - reach, middle + reach)
        )
        columns, rows = (upper - lower + 1).unbind(dim=1)
        count = columns * rows
        asking = torch.arange(len(gt_boxes), device=priors.device).repeat_interleave(count)
        rank = torch.arange(len(asking), device=priors.device) - (count.cumsum(0) - count)[asking]
        column = lower[asking, 0] + rank % columns[asking]
        row = lower[asking, 1] + rank // columns[asking]
        starts = torch.tensor([sum(level_sizes[:level]) for level in range(len(level_sizes))], device=priors.device)
        asked = starts[levels[asking]] + row * (end[asking, 0] + 1) + column
        return best_object(asking, asked, -areas(gt_boxes)[asking], len(gt_boxes), len(priors))

    def _levels(self, gt_boxes: Tensor) -> Tensor:
        """The level of each object, `[M]`."""
        sizes = areas(gt_boxes).sqrt()
        sides = self.anchor_scale * torch.tensor(self.strides, device=sizes.device, dtype=sizes.dtype)
        return (sizes[:, None].log() - sides.log()).abs().argmin(dim=1)
