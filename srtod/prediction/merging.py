"""Merges detections of one object: across the tiles of a sliced image, across classes, and nested ones."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["Overlap", "suppress"]

Overlap = Literal["iou", "ios"]
"""How much two boxes overlap: their intersection over their union, or over the smaller of them."""

MOST_PAIRS = 2**20
"""Pairs of boxes that are compared at once, which bounds the memory where thousands of boxes lie on one another."""


def suppress(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None = None,
    *,
    overlap: Overlap = "iou",
    threshold: float = 0.5,
    parts: Tensor | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """Greedy non-maximum suppression on the boxes' device, at a cost linear in boxes and in pairs that meet.

    The order is by score. A box goes where one before it that stays overlaps it by more than the threshold.
    torchvision's `nms` compares all boxes with all, by the intersection over the union alone.

    Args:
        boxes: `[K, 4]`, (x1, y1, x2, y2).
        scores: `[K]`.
        labels: the classes `[K]`: only boxes of one class suppress each other; None: all do.
        overlap: see `Overlap`.
        threshold: from 0 to 1.
        parts: bool `[K]`: boxes that may be parts of objects. They come behind all others, whatever their score, and
            with them the overlap is that over the smaller box. None: none.
        groups: int `[K]`: boxes of one group, which know each other already, do not suppress each other; None: all may.

    Returns:
        The indices `[M]` of those that stay, best score first.
    """
    order = torch.sort(scores, descending=True, stable=True).indices
    if parts is not None:
        order = order[torch.sort(parts[order], stable=True).indices]
    kept, rest = order[:0], order
    while len(rest):
        block = rest
        while (sweep := _Sweep(boxes[torch.cat([kept, block])].double())).pairs > MOST_PAIRS and len(block) > 1:
            block = block[: (len(block) + 1) // 2]
        # The kept ones come first: of each pair the first suppresses the second.
        known = torch.cat([kept, block])
        first, second = sweep.pairs_since(len(kept))
        for which, same in ((labels, True), (groups, False)):
            if which is not None:
                allowed = (which[known[first]] == which[known[second]]) == same
                first, second = first[allowed], second[allowed]
        over_smaller: Tensor | bool = overlap == "ios"
        if parts is not None:
            over_smaller |= parts[known[first]] | parts[known[second]]
        shared, whole = sweep.overlaps(first, second, over_smaller)
        met = shared > threshold * whole
        first, second = first[met], second[met]
        kept, rest = known[_stays(len(known), first, second)], rest[len(block) :]
    return kept[torch.sort(scores[kept], descending=True, stable=True).indices]


def _stays(count: int, first: Tensor, second: Tensor) -> Tensor:
    """Which of so many boxes stay, bool `[K]`, if `first[i]` suppresses `second[i]` where it stays itself.

    A box is decided once all that could suppress it are: as many rounds as the longest chain of overlaps.
    """
    stays = torch.ones(count, dtype=torch.bool, device=first.device)
    while len(second):
        waits = torch.zeros_like(stays)
        waits[second] = True
        certain = ~waits[first]  # these stay, and suppress
        stays[second[certain]] = False
        open_ = stays[first] & stays[second]
        open_ &= ~certain
        first, second = first[open_], second[open_]
    return stays


class _Sweep:
    """Finds boxes that may meet: the image is cut into bands of rows, and each band is swept from left to right.

    Args:
        boxes: `[K, 4]`, at least one.

    Attributes:
        pairs: how many pairs there are to compare.
    """

    def __init__(self, boxes: Tensor) -> None:
        self.boxes = boxes = boxes - boxes[:, :2].amin(dim=0).repeat(2)
        height = float((2 * (boxes[:, 3] - boxes[:, 1]).mean()).clamp(min=1e-3))  # so that a box lies in 1.5 on average
        self.tops, bottoms = (boxes[:, [1, 3]] / height).long().unbind(dim=1)
        copies = bottoms - self.tops + 1
        box = torch.arange(len(boxes), device=boxes.device).repeat_interleave(copies)
        band = self.tops[box] + _ranks(copies)
        width = float(boxes[:, 2].max()) + 1
        starts, order = torch.sort(band * width + boxes[box, 0])
        self.box, self.band = box[order], band[order]
        # A box's partners begin behind its start and not behind its end, in the same band.
        ends = torch.searchsorted(starts, self.band * width + boxes[self.box, 2])
        self.partners = (ends - torch.arange(len(box), device=boxes.device) - 1).clamp(min=0)
        self.pairs = int(self.partners.sum())

    def pairs_since(self, known: int) -> tuple[Tensor, Tensor]:
        """The pairs that may meet, indices `[P]` of the first and of the second box, but those among the first `known`.

        Those do not overlap.
        """
        one = torch.arange(len(self.box), device=self.box.device).repeat_interleave(self.partners)
        band = self.band[one]
        one, other = self.box[one], self.box[one + 1 + _ranks(self.partners)]
        first, second = torch.minimum(one, other), torch.maximum(one, other)
        # Boxes that share several bands meet in each of them: the one in which both have begun first counts.
        wanted = (second >= known) & (band == torch.maximum(self.tops[first], self.tops[second]))
        return first[wanted], second[wanted]

    def overlaps(self, first: Tensor, second: Tensor, over_smaller: Tensor | bool) -> tuple[Tensor, Tensor]:
        """The intersection of pairs `[P]`, and what it is a share of: the smaller box where asked, else the union."""
        a, b = self.boxes[first], self.boxes[second]
        shared = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(dim=1)
        areas = [(box[:, 2:] - box[:, :2]).clamp(min=0).prod(dim=1) for box in (a, b)]
        over_smaller = torch.as_tensor(over_smaller, device=shared.device)
        return shared, torch.where(over_smaller, torch.minimum(*areas), areas[0] + areas[1] - shared)


def _ranks(counts: Tensor) -> Tensor:
    """0, 1, ..., counts[i] - 1 for each i, one after the other."""
    ends = counts.cumsum(0)
    return torch.arange(int(counts.sum()), device=counts.device) - (ends - counts).repeat_interleave(counts)
