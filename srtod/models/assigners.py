"""Assigners: which prior (an anchor, a receptive field, a proposal) has to find which object in training.

Every assigner is called as `assigner(gt_boxes, priors)` with (x1, y1, x2, y2) in pixels, `[M, 4]` and `[P, 4]`, and
gives `[P]`, int64: the index of the prior's object, -1 for background, -2 for priors to be left out of the loss.
Without objects all is background. No gradients are recorded, and the inputs are never modified.

Of equal scores the lowest index wins, of priors and of objects alike. The full matrix, 4 GB for 5,000 objects and
200,000 priors, is never made: priors of like size and place form blocks, an object is compared only with those blocks
whose bounds say that they matter, and with some blocks at a time. The result is that of the full matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .boxes import as_gaussians, check_boxes, kl_of_gaussians, scale_boxes

__all__ = ["BACKGROUND", "IGNORED", "ATSSAssigner", "HierarchicalAssigner", "MaxIoUAssigner"]

BACKGROUND = -1
IGNORED = -2

BLOCK = 128
"""Priors that share their bounds."""

PAIRS_AT_ONCE = 2**20
"""Pairs of object and prior that are compared at a time: 4 MB in float32, some of which are alive."""


class MaxIoUAssigner:
    """Priors by their highest IoU (Ren et al., "Faster R-CNN", 2015, section 3.1.2); equals torchvision's `Matcher`.

    A prior belongs to the object with which its IoU is highest if that is at least `foreground`, is background below
    `background`, and ignored between. With `low_quality`, the priors that overlap an object most, all that tie, belong
    to the object that they themselves overlap most, however little that is.

    An object that no prior overlaps at all takes none: to torchvision it ties with every prior at IoU 0, and so makes
    the whole image an object.

    Args:
        foreground: IoU from which a prior belongs to an object.
        background: IoU below which it is background.
        low_quality: whether an object takes its best priors in any case.

    Raises:
        ValueError: if not 0 <= background <= foreground <= 1.
    """

    def __init__(self, foreground: float = 0.7, background: float = 0.3, *, low_quality: bool = True) -> None:
        if not 0 <= background <= foreground <= 1:
            raise ValueError(
                f"the IoUs must obey 0 <= background <= foreground <= 1, got background={background} and "
                f"foreground={foreground}"
            )
        self.foreground = foreground
        self.background = background
        self.low_quality = low_quality

    @torch.no_grad()
    def __call__(
        self,
        gt_boxes: Tensor,  # [M, 4], in pixels
        priors: Tensor,  # [P, 4], in pixels; sides may be 0, as of proposals clipped to the image
    ) -> Tensor:
        """The object of each prior, `[P]`, see the module's docstring.

        Raises:
            ValueError: if boxes have the wrong shape, are not finite or have negative sides.
        """
        gt_boxes, priors = _check(gt_boxes, priors, allow_empty_priors=True)
        assigned = _all_background(priors)
        if len(gt_boxes) == 0 or len(priors) == 0:
            return assigned
        blocks = _blocks(priors)
        highest = priors.new_zeros(len(priors))
        highest_of_object = gt_boxes.new_zeros(len(gt_boxes))
        for objects, indices, iou in _overlapping(gt_boxes, priors, blocks):
            highest.scatter_reduce_(0, indices.flatten(), iou.flatten(), "amax")
            highest_of_object.scatter_reduce_(0, objects, iou.amax(dim=1), "amax")
        owner = torch.full_like(assigned, len(gt_boxes))
        owner[highest == 0] = 0  # the first of equally bad objects, as in torchvision; counts if foreground = 0
        wanted = torch.zeros(len(priors), dtype=torch.bool, device=priors.device)
        for objects, indices, iou in _overlapping(gt_boxes, priors, blocks):
            rows, slots = ((iou == highest[indices]) & (iou > 0)).nonzero().unbind(dim=1)
            owner.scatter_reduce_(0, indices[rows, slots], objects[rows], "amin")
            wanted[indices[(iou == highest_of_object[objects, None]) & (iou > 0)]] = True
        assigned[highest >= self.background] = IGNORED
        positive = highest >= self.foreground
        return torch.where(positive | wanted if self.low_quality else positive, owner, assigned)


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
        """The object of each prior, `[P]`, see the module's docstring; there are no ignored ones.

        Raises:
            ValueError: if boxes have the wrong shape, are not finite or have sides that are not positive, or the level
                sizes are missing or do not add up to the number of priors.
        """
        gt_boxes, priors = _check(gt_boxes, priors)
        level_sizes = self.level_sizes if level_sizes is None else level_sizes
        if level_sizes is None:
            raise ValueError("give level_sizes, the number of priors of each level, to ATSSAssigner or to its call")
        if sum(level_sizes) != len(priors) or min(level_sizes, default=0) < 0:
            raise ValueError(
                f"level_sizes must add up to the number of priors, got {list(level_sizes)} for {len(priors)} priors"
            )
        if len(gt_boxes) == 0 or len(priors) == 0:
            return _all_background(priors)
        objects = _centres(gt_boxes).T
        starts = [sum(level_sizes[:level]) for level in range(len(level_sizes))]
        candidates = torch.cat(
            [
                start + _nearest(objects, _centres(level).T, _blocks(level), self.topk, _SquaredDistance()).priors
                for start, level in zip(starts, priors.split(list(level_sizes)), strict=True)
                if len(level) > 0
            ],
            dim=1,
        )
        boxes, chosen = gt_boxes[:, None], priors[candidates]
        iou = _paired_iou(boxes, chosen)
        mean, std = iou.mean(dim=1, keepdim=True), iou.new_zeros(len(iou), 1)
        if iou.shape[1] > 1:
            std = iou.std(dim=1, keepdim=True)
        own_centres = _centres(chosen)
        inside = ((own_centres > boxes[..., :2]) & (own_centres < boxes[..., 2:])).all(dim=-1)
        asking, slots = ((iou >= mean + std) & inside).nonzero().unbind(dim=1)
        return _best_object(asking, candidates[asking, slots], iou[asking, slots], len(gt_boxes), len(priors))


class HierarchicalAssigner:
    """RFLA's hierarchical label assignment (Xu et al., "RFLA", ECCV 2022, section 3.3), by KL divergence.

    The score of a prior for an object is `1 / (1 + KL(prior || object))`, both taken as Gaussians; the formula is that
    of `srtod.models.boxes.receptive_field_distance`. It ranks priors that do not even touch the object, so every object
    gets its share, however tiny it is, unless others score higher on the priors that it asks for.

    1. Each object asks for the `topk[0]` priors with the highest scores.
    2. The priors are scaled by `ratio` about their centres, and each object asks for `topk[1]` more among those that
       nobody got in step 1.

    In each step a prior that several objects ask for goes to the one with the highest score.

    `paper=True` does what the released code does, which differs: in step 2 an object asks for its best of all priors,
    which adds one only if nobody got it in step 1; priors that tie with the last one that an object asks for are asked
    for as well; a prior that several objects ask for goes to the last of them, whatever the scores; and the other
    priors whose score for some object is at least 0.8 in step 2 are ignored.

    5,000 objects and 200,000 priors take about 2 s of one CPU core and up to 180 MB.

    Args:
        topk: priors per object in step 1 and in step 2.
        ratio: scale of the priors in step 2.
        paper: whether to assign as the released code.

    Raises:
        ValueError: if `topk` is not a positive and a non-negative number, or `ratio` is not positive.
    """

    IGNORED_SCORE = 0.8

    def __init__(self, topk: tuple[int, int] = (3, 1), ratio: float = 0.9, *, paper: bool = False) -> None:
        if len(topk) != 2 or topk[0] < 1 or topk[1] < 0:
            raise ValueError(f"topk must be two numbers, at least 1 and at least 0, got {tuple(topk)}")
        if not ratio > 0:
            raise ValueError(f"ratio must be positive, got {ratio}")
        self.topk = (topk[0], topk[1])
        self.ratio = ratio
        self.paper = paper

    @torch.no_grad()
    def __call__(
        self,
        gt_boxes: Tensor,  # [M, 4], in pixels
        priors: Tensor,  # [P, 4], in pixels
    ) -> Tensor:
        """The object of each prior, `[P]`, see the module's docstring; ignored ones exist only with `paper`.

        Raises:
            ValueError: if boxes have the wrong shape, are not finite or have sides that are not positive.
        """
        gt_boxes, priors = _check(gt_boxes, priors)
        if len(gt_boxes) == 0 or len(priors) == 0:
            return _all_background(priors)
        objects, scaled = as_gaussians(gt_boxes), scale_boxes(priors, self.ratio)
        if self.paper:
            return self._as_released(objects, priors, scaled)
        assigned = self._step(objects, priors, self.topk[0])
        free = (assigned == BACKGROUND).nonzero().squeeze(1)
        if self.topk[1] > 0 and len(free) > 0:
            assigned[free] = self._step(objects, scaled[free], self.topk[1])
        return assigned

    def _step(self, objects: Tensor, priors: Tensor, count: int) -> Tensor:
        """The object of each prior `[P]` when each asks for `count`, from Gaussians `[5, M]` and boxes `[P, 4]`."""
        nearest = _nearest(objects, as_gaussians(priors), _blocks(priors), count, _KL())
        asking = torch.arange(objects.shape[1], device=objects.device)[:, None].expand_as(nearest.priors)
        scores = -nearest.costs  # 1 / (1 + KL) has the same order, but rounds more divergences to one score
        return _best_object(asking.flatten(), nearest.priors.flatten(), scores.flatten(), objects.shape[1], len(priors))

    def _as_released(self, objects: Tensor, priors: Tensor, scaled: Tensor) -> Tensor:
        """The assignment `[P]` of the released code, from Gaussians `[5, M]` and boxes, twice `[P, 4]`."""
        first, _ = self._last_objects(objects, priors, self.topk[0])
        second, good = self._last_objects(objects, scaled, self.topk[1])
        second[(second == BACKGROUND) & good] = IGNORED
        return torch.where(first >= 0, first, second)

    def _last_objects(self, objects: Tensor, priors: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The last object that asks for each prior, ties included, and whether one scores `IGNORED_SCORE`, `[P]`."""
        gaussians, blocks = as_gaussians(priors), _blocks(priors)
        good_kl = 1 / self.IGNORED_SCORE - 1
        bound = objects.new_full((objects.shape[1],), -1.0)
        if count > 0:
            bound = _nearest(objects, gaussians, blocks, count, _KL()).costs[:, -1]
        last = torch.full((len(priors),), BACKGROUND, device=priors.device)
        good = torch.zeros_like(last, dtype=torch.bool)
        for asking, indices, kl in _compare(objects, gaussians, blocks, bound.clamp(min=good_kl), _KL()):
            rows, slots = (kl <= bound[asking, None]).nonzero().unbind(dim=1)
            last.scatter_reduce_(0, indices[rows, slots], asking[rows], "amax")
            good[indices[kl <= good_kl]] = True
        return last, good


class _Nearest(NamedTuple):
    """The priors nearest to each object, nearest first.

    Attributes:
        priors: indices of priors, `[M, K]`.
        costs: how far they are, `[M, K]`.
    """

    priors: Tensor
    costs: Tensor


class _KL:
    """KL divergence of a prior from an object, Gaussians `[5, ...]`."""

    def __call__(self, objects: Tensor, priors: Tensor) -> Tensor:
        return kl_of_gaussians(objects, priors)

    def closest(self, objects: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """What would be nearest to the objects of all priors between the bounds: KL is convex along every parameter."""
        closest = objects.clamp(low, high)
        closest[4] = (closest[2] * closest[3]).log() / 2
        return closest


class _SquaredDistance:
    """Squared distance of centres `[2, ...]`."""

    def __call__(self, objects: Tensor, priors: Tensor) -> Tensor:
        return (priors - objects).square_().sum(dim=0)

    def closest(self, objects: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """What would be nearest to the objects of all priors between the bounds."""
        return objects.clamp(low, high)


def _nearest(objects: Tensor, priors: Tensor, blocks: Tensor, count: int, cost: _KL | _SquaredDistance) -> _Nearest:
    """The `count` priors (all, if there are fewer) of least cost for each object, of equal costs the first.

    From `[D, M]` and `[D, P]`, the values that the cost needs of an object and of a prior, and the priors' blocks.
    """
    count = min(count, priors.shape[1])
    reach = _reach(objects, priors, blocks, count, cost)
    found = []
    for asking, indices, costs in _compare(objects, priors, blocks, reach, cost):
        smallest, slots = _smallest(costs, min(count, BLOCK))
        rows, columns = (smallest <= reach[asking, None]).nonzero().unbind(dim=1)
        found.append((asking[rows], indices[rows, slots[rows, columns]], smallest[rows, columns]))
    asking, indices, costs = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = indices.argsort()
    for key in (costs, asking):  # by object, then by cost, then by index
        order = order[key[order].sort(stable=True).indices]
    candidates = asking.bincount(minlength=objects.shape[1])
    order = order[(candidates.cumsum(0) - candidates)[:, None] + torch.arange(count, device=order.device)]
    return _Nearest(indices[order], costs[order])


def _reach(objects: Tensor, priors: Tensor, blocks: Tensor, count: int, cost: _KL | _SquaredDistance) -> Tensor:
    """A cost `[M]` that at least `count` priors do not exceed, from the block that promises most to each object."""
    reach = objects.new_full((objects.shape[1],), torch.inf)
    if count > BLOCK:
        return reach
    arranged, low, high = _arrange(priors, blocks)
    for rows in _slices(objects.shape[1], len(blocks)):
        some = objects[:, rows, None]
        best = cost(some, cost.closest(some, low, high)).argmin(dim=1)
        costs = cost(some, arranged[:, best]).masked_fill_(blocks[best] == priors.shape[1], torch.inf)
        reach[rows] = _smallest(costs, count)[0][:, -1]
    return reach


def _compare(
    objects: Tensor, priors: Tensor, blocks: Tensor, reach: Tensor, cost: _KL | _SquaredDistance
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Compares every object with all blocks that may hold a prior whose cost does not exceed its reach.

    Yields some pairs of object and block at a time: objects `[n]`, the block's indices `[n, BLOCK]` and costs
    `[n, BLOCK]`, infinite where the index is P.
    """
    arranged, low, high = _arrange(priors, blocks)
    limit = reach + 1e-4 * (1 + reach)  # the bounds are rounded, too
    for rows in _slices(objects.shape[1], len(blocks)):
        some = objects[:, rows, None]
        near = cost(some, cost.closest(some, low, high)) <= limit[rows, None]
        for asking, chosen in _pairs(near):
            asking, indices = asking + rows.start, blocks[chosen]
            costs = cost(objects[:, asking, None], arranged[:, chosen])
            yield asking, indices, costs.masked_fill_(indices == priors.shape[1], torch.inf)


def _overlapping(gt_boxes: Tensor, priors: Tensor, blocks: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Compares every object with all blocks that may hold a prior that overlaps it.

    Yields some pairs of object and block at a time: objects `[n]`, the block's indices `[n, BLOCK]`, of which the first
    is repeated where the block has no more priors, and IoUs `[n, BLOCK]`.
    """
    arranged, low, high = _arrange(priors.T, blocks)
    boxes, blocks = arranged.permute(1, 2, 0).contiguous(), _without_gaps(blocks, len(priors))
    for rows in _slices(len(gt_boxes), len(blocks)):
        x1, y1, x2, y2 = gt_boxes[rows, :, None].unbind(dim=1)
        near = (x1 < high[2]) & (y1 < high[3]) & (x2 > low[0]) & (y2 > low[1])
        for objects, chosen in _pairs(near):
            objects = objects + rows.start
            yield objects, blocks[chosen], _paired_iou(gt_boxes[objects, None], boxes[chosen])


def _blocks(priors: Tensor) -> Tensor:
    """Priors `[P, 4]` in blocks of similar ones: indices `[B, BLOCK]`, ascending in a block, P where one is not full.

    A block holds priors whose widths, and whose heights, are equal to within a factor of about 2, next to each other on
    a Z-order curve (Morton, 1966), so that it covers a small area however dense the priors are.
    """
    count = len(priors)
    sides = (priors[:, 2:] - priors[:, :2]).clamp(min=2**-10).log2().round().long()
    centres = (priors[:, :2] + priors[:, 2:]) / 2
    extent = (centres.amax(dim=0) - centres.amin(dim=0)).clamp(min=1e-6).amax()
    cells = ((centres - centres.amin(dim=0)) / extent * (2**12 - 1)).long()
    curve = _spread_bits(cells[:, 0]) | _spread_bits(cells[:, 1]) << 1
    _, kind, sizes = torch.unique(sides[:, 0] * 2**12 + sides[:, 1], return_inverse=True, return_counts=True)
    order = (kind * 2**24 + curve).sort(stable=True).indices
    kind = kind[order]
    rank = torch.arange(count, device=priors.device) - (sizes.cumsum(0) - sizes)[kind]
    blocks_of_kind = (sizes + BLOCK - 1) // BLOCK
    slots = (blocks_of_kind.cumsum(0) - blocks_of_kind)[kind] * BLOCK + rank
    blocks = torch.full((int(blocks_of_kind.sum()) * BLOCK,), count, device=priors.device)
    blocks[slots] = order
    return blocks.view(-1, BLOCK).sort(dim=1).values


def _spread_bits(x: Tensor) -> Tensor:
    """The lowest 12 bits of integers with a zero before each."""
    for shift, mask in ((8, 0x00FF00FF), (4, 0x0F0F0F0F), (2, 0x33333333), (1, 0x55555555)):
        x = (x | x << shift) & mask
    return x


def _arrange(priors: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Priors `[D, P]` in their blocks, `[D, B, BLOCK]`, and the least and the greatest values of each, `[D, 1, B]`.

    The first prior of a block is repeated where it has no more.
    """
    arranged = priors[:, _without_gaps(blocks, priors.shape[1])]
    low, high = arranged.aminmax(dim=2)
    return arranged, low[:, None], high[:, None]


def _without_gaps(blocks: Tensor, count: int) -> Tensor:
    """Blocks of indices with the first index of each in the place of `count`."""
    return torch.where(blocks == count, blocks[:, :1], blocks)


def _pairs(near: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The objects and blocks, `[n]`, of the pairs that `near` `[M, B]` marks, some at a time."""
    for pairs in near.nonzero().split(max(1, PAIRS_AT_ONCE // BLOCK)):
        yield pairs[:, 0], pairs[:, 1]


def _slices(objects: int, blocks: int) -> Iterator[slice]:
    """Slices of the objects, of as many as are compared with the bounds of all blocks at a time."""
    rows = max(1, PAIRS_AT_ONCE // max(blocks, BLOCK))
    for start in range(0, objects, rows):
        yield slice(start, min(start + rows, objects))


def _smallest(costs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The smallest costs of each row and their places, `[n, count]`, ascending, of equal ones the first.

    `torch.topk` leaves open which of equal values it takes; `argmin` takes the first. Where a row has fewer finite
    costs than `count`, infinite ones follow, whose places may repeat.
    """
    costs = costs.clone()
    smallest, indices = [], []
    for _ in range(count):
        index = costs.argmin(dim=1, keepdim=True)
        smallest.append(costs.gather(1, index))
        indices.append(index)
        costs.scatter_(1, index, torch.inf)
    return torch.cat(smallest, dim=1), torch.cat(indices, dim=1)


def _best_object(asking: Tensor, asked: Tensor, scores: Tensor, objects: int, priors: int) -> Tensor:
    """For each prior, of the objects that ask for it, the one with the highest score, of these the first; `[P]`.

    From as many objects `[K]`, indices of priors `[K]` and scores `[K]`.
    """
    best = scores.new_full((priors,), -torch.inf).scatter_reduce_(0, asked, scores, "amax")
    wins = scores == best[asked]
    nobody = torch.full((priors,), objects, device=asked.device)
    first = nobody.scatter_reduce_(0, asked[wins], asking[wins], "amin")
    return torch.where(first == objects, BACKGROUND, first)


def _check(gt_boxes: Tensor, priors: Tensor, *, allow_empty_priors: bool = False) -> tuple[Tensor, Tensor]:
    """Checked boxes in one type, at least float32."""
    gt_boxes = check_boxes(gt_boxes, "gt_boxes")
    priors = check_boxes(priors, "priors", allow_empty_sides=allow_empty_priors)
    dtype = torch.promote_types(gt_boxes.dtype, priors.dtype)
    return gt_boxes.to(dtype), priors.to(dtype)


def _all_background(priors: Tensor) -> Tensor:
    return torch.full((len(priors),), BACKGROUND, device=priors.device)


def _centres(boxes: Tensor) -> Tensor:
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def _paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU of boxes `[..., 4]` with others `[..., 4]`, element by element; torchvision has it for all pairs only."""
    shared = (torch.minimum(boxes[..., 2:], others[..., 2:]) - torch.maximum(boxes[..., :2], others[..., :2])).clamp(
        min=0
    )
    intersection = shared[..., 0] * shared[..., 1]
    return intersection / (_areas(boxes) + _areas(others) - intersection)


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
