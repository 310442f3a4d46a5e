"""The assignment of FCOS."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..boxes import areas, centres
from .owners import BACKGROUND, check, check_level_sizes, split_rows

__all__ = ["FCOSAssigner"]

LIMIT_IN_STRIDES = 8  # the paper's limits 64, 128, 256 and 512 pixels at strides 8 to 64


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

    @torch.no_grad()
    def __call__(
        self,
        gt_boxes: Tensor,  # [M, 4], in pixels
        priors: Tensor,  # [P, 4], in pixels: squares around the locations
        level_sizes: Sequence[int],
    ) -> Tensor:
        """The object of each location, `[P]`, see `srtod.models.assigners`; there are no ignored ones.

        Args:
            gt_boxes: the objects.
            priors: boxes around the locations, of all levels; only their centres matter.
            level_sizes: number of locations of each level, in the order of `priors`.

        Raises:
            ValueError: if boxes have the wrong shape, are not finite or have sides that are not positive, or the level
                sizes do not add up to the number of priors.
        """
        gt_boxes, priors = check(gt_boxes, priors)
        check_level_sizes(level_sizes, priors)
        order = areas(gt_boxes).argsort(stable=True)  # the least rank wins; stable, so that of equals the first does
        boxes = gt_boxes[order]
        ranks = torch.full((len(priors),), len(boxes), device=priors.device)
        start = 0
        for level, of_level in enumerate(centres(priors).split(list(level_sizes))):
            for chunk in split_rows(of_level, len(boxes)):
                locations, objects = self._pairs(boxes, chunk, level)
                ranks.scatter_reduce_(0, locations + start, objects, "amin")
                start += len(chunk)
        return F.pad(order, (0, 1), value=BACKGROUND)[ranks]

    def _pairs(self, boxes: Tensor, points: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Which points `[p, 2]` of a level may belong to which boxes `[M, 4]`: indices of both, `[K]` each."""
        lower, upper = boxes[:, :2], boxes[:, 2:]
        if self.radius is not None:
            middles, reach = centres(boxes), self.radius * self.strides[level]
            lower, upper = torch.maximum(lower, middles - reach), torch.minimum(upper, middles + reach)
        x, y = points[:, :1], points[:, 1:]  # [p, 1], against the objects [M]
        inside = (x > lower[:, 0]) & (x < upper[:, 0]) & (y > lower[:, 1]) & (y < upper[:, 1])
        locations, objects = inside.nonzero().unbind(dim=1)
        own, sides = points[locations], boxes[objects]
        furthest = torch.cat([own - sides[:, :2], sides[:, 2:] - own], dim=1).amax(dim=1)
        in_range = (furthest >= self.limits[level]) & (furthest <= self.limits[level + 1])
        return locations[in_range], objects[in_range]
