"""Comparing thousands of objects with hundreds of thousands of priors without the matrix of all pairs.

That matrix takes 4 GB for 5,000 objects and 200,000 priors. Here priors of like size and place form blocks, an object
is compared only with those blocks whose bounds say that they matter, and with some blocks at a time. The result is that
of the full matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..boxes import centres, kl_of_gaussians, paired_iou

__all__ = ["KL", "Nearest", "SquaredDistance", "compare", "make_blocks", "nearest", "overlapping"]

BLOCK = 128
"""Priors that share their bounds."""

PAIRS_AT_ONCE = 2**20
"""Pairs of object and prior that are compared at a time: 4 MB in float32, some of which are alive."""


class Nearest(NamedTuple):
    """The priors nearest to each object, nearest first.

    Attributes:
        priors: indices of priors, `[M, K]`.
        costs: how far they are, `[M, K]`.
    """

    priors: Tensor
    costs: Tensor


class KL:
    """KL divergence of a prior from an object, Gaussians `[5, ...]`."""

    def __call__(self, objects: Tensor, priors: Tensor) -> Tensor:
        return kl_of_gaussians(objects, priors)

    def closest(self, objects: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """What would be nearest to the objects of all priors between the bounds: KL is convex along every parameter."""
        closest = objects.clamp(low, high)
        closest[4] = (closest[2] * closest[3]).log() / 2
        return closest


class SquaredDistance:
    """Squared distance of centres `[2, ...]`."""

    def __call__(self, objects: Tensor, priors: Tensor) -> Tensor:
        return (priors - objects).square_().sum(dim=0)

    def closest(self, objects: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """What would be nearest to the objects of all priors between the bounds."""
        return objects.clamp(low, high)


def nearest(objects: Tensor, priors: Tensor, blocks: Tensor, count: int, cost: KL | SquaredDistance) -> Nearest:
    """The `count` priors (all, if there are fewer) of least cost for each object, of equal costs the first.

    From `[D, M]` and `[D, P]`, the values that the cost needs of an object and of a prior, and the priors' blocks.
    """
    count = min(count, priors.shape[1])
    reach = _reach(objects, priors, blocks, count, cost)
    found = []
    for asking, indices, costs in compare(objects, priors, blocks, reach, cost):
        smallest, slots = _smallest(costs, min(count, BLOCK))
        rows, columns = (smallest <= reach[asking, None]).nonzero().unbind(dim=1)
        found.append((asking[rows], indices[rows, slots[rows, columns]], smallest[rows, columns]))
    asking, indices, costs = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = indices.argsort()
    for key in (costs, asking):  # by object, then by cost, then by index
        order = order[key[order].sort(stable=True).indices]
    candidates = asking.bincount(minlength=objects.shape[1])
    order = order[(candidates.cumsum(0) - candidates)[:, None] + torch.arange(count, device=order.device)]
    return Nearest(indices[order], costs[order])


def _reach(objects: Tensor, priors: Tensor, blocks: Tensor, count: int, cost: KL | SquaredDistance) -> Tensor:
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


def compare(
    objects: Tensor, priors: Tensor, blocks: Tensor, reach: Tensor, cost: KL | SquaredDistance
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


def overlapping(gt_boxes: Tensor, priors: Tensor, blocks: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
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
            yield objects, blocks[chosen], paired_iou(gt_boxes[objects, None], boxes[chosen])


def make_blocks(priors: Tensor) -> Tensor:
    """Priors `[P, 4]` in blocks of similar ones: indices `[B, BLOCK]`, ascending in a block, P where one is not full.

    A block holds priors whose widths, and whose heights, are equal to within a factor of about 2, next to each other on
    a Z-order curve (Morton, 1966), so that it covers a small area however dense the priors are.
    """
    count = len(priors)
    sides = (priors[:, 2:] - priors[:, :2]).clamp(min=2**-10).log2().round().long()
    middles = centres(priors)
    extent = (middles.amax(dim=0) - middles.amin(dim=0)).clamp(min=1e-6).amax()
    cells = ((middles - middles.amin(dim=0)) / extent * (2**12 - 1)).long()
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
