"""What assigners give, the owner of each prior, and what they share about it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..boxes import at_least_float32, centres, check_boxes

__all__ = [
    "BACKGROUND",
    "IGNORED",
    "all_background",
    "best_object",
    "check",
    "check_level_sizes",
    "split_rows",
    "without_negatives_inside",
]

BACKGROUND = -1
IGNORED = -2

PAIRS_AT_ONCE = 2**22
"""Pairs of prior and box in one table of booleans: 4 MB."""


@torch.no_grad()
def without_negatives_inside(
    owners: Tensor,  # [P], int64
    priors: Tensor,  # [P, 4], in pixels
    regions: Tensor | None,  # [K, 4], in pixels
) -> Tensor:
    """The owners `[P]` with `IGNORED` in place of `BACKGROUND` where a prior lies in an ignore region.

    In an ignore region nobody has said what there is, so that nothing there may be learnt as background. A prior lies
    in a region if its centre does, borders included. That takes in every prior that COCO's evaluation would forgive as
    a detection in a crowd, by half its area inside: half of each side is inside then, and so is its middle. It takes in
    more, because an anchor's size is not that of what it predicts: COCO's rule alone would leave as negatives the
    anchors around a region as small as one object. Objects keep their priors.
    """
    if regions is None or len(regions) == 0:
        return owners
    owners = owners.clone()
    x1, y1, x2, y2 = at_least_float32(regions).unbind(dim=1)
    for background in split_rows((owners == BACKGROUND).nonzero().squeeze(1), len(regions)):
        x, y = centres(priors[background])[..., None].unbind(dim=1)  # [p, 1] each, against the regions [K]
        inside = (x >= x1) & (x <= x2) & (y >= y1) & (y <= y2)
        owners[background[inside.any(dim=1)]] = IGNORED
    return owners


def best_object(asking: Tensor, asked: Tensor, scores: Tensor, objects: int, priors: int) -> Tensor:
    """For each prior, of the objects that ask for it, the one with the highest score, of these the first; `[P]`.

    From as many objects `[K]`, indices of priors `[K]` and scores `[K]`.
    """
    best = scores.new_full((priors,), -torch.inf).scatter_reduce_(0, asked, scores, "amax")
    wins = scores == best[asked]
    nobody = torch.full((priors,), objects, device=asked.device)
    first = nobody.scatter_reduce_(0, asked[wins], asking[wins], "amin")
    return torch.where(first == objects, BACKGROUND, first)


def check(gt_boxes: Tensor, priors: Tensor, *, allow_empty_priors: bool = False) -> tuple[Tensor, Tensor]:
    """Checked boxes in one type, at least float32."""
    gt_boxes = check_boxes(gt_boxes, "gt_boxes")
    priors = check_boxes(priors, "priors", allow_empty_sides=allow_empty_priors)
    dtype = torch.promote_types(gt_boxes.dtype, priors.dtype)
    return gt_boxes.to(dtype), priors.to(dtype)


def check_level_sizes(level_sizes: Sequence[int], priors: Tensor) -> None:
    """Raises a ValueError unless the sizes of the levels add up to the number of priors `[P, 4]`."""
    if sum(level_sizes) != len(priors) or min(level_sizes, default=0) < 0:
        raise ValueError(
            f"level_sizes must add up to the number of priors, got {list(level_sizes)} for {len(priors)} priors"
        )


def all_background(priors: Tensor) -> Tensor:
    """The owners `[P]` of priors `[P, 4]` where there are no objects."""
    return torch.full((len(priors),), BACKGROUND, device=priors.device)


def split_rows(rows: Tensor, columns: int) -> tuple[Tensor, ...]:
    """Rows `[P, ...]` in parts of which each may be compared with so many columns at once."""
    return rows.split(max(1, PAIRS_AT_ONCE // max(1, columns)))
