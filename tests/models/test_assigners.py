"""Assigners against torchvision, against plain loops, and by hand.

5,000 objects of 4 to 19 pixels and 200,000 priors took on one core of an AMD EPYC, each in a process of its own:
HierarchicalAssigner 1.5 s and 159 MB more than before, as released 1.9 s and 177 MB, ATSSAssigner 2.6 s and 275 MB,
MaxIoUAssigner 1.7 s and 154 MB, FCOSAssigner 2.6 s and 33 MB. Printed by
`pytest -m slow tests/models/test_assigners.py -s`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import _utils as det_utils
from torchvision.ops import box_iou

from srtod.models.assigners import (
    ATSSAssigner,
    FCOSAssigner,
    HierarchicalAssigner,
    MaxIoUAssigner,
    RegionAssigner,
    blocks,
)
from srtod.models.boxes import areas, gaussian_kl, scale_boxes

Assigner = Callable[[Tensor, Tensor], Tensor]


def random_boxes(count: int, seed: int, extent: float = 60, largest: float = 20) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * extent
    return torch.cat((corners, corners + 1 + torch.rand(count, 2, generator=generator) * largest), dim=1)


def grid(size: int, levels: tuple[tuple[float, int], ...]) -> tuple[Tensor, list[int]]:
    """Anchors of three ratios at every place of (side, stride) levels, and the number of each level."""
    anchors = []
    for side, stride in levels:
        places = torch.arange(size // stride) * float(stride)
        y, x = torch.meshgrid(places, places, indexing="ij")
        half = torch.tensor([[side / 2 / r**0.5, side / 2 * r**0.5] for r in (0.5, 1.0, 2.0)])
        centres = torch.stack((x, y), dim=2)[:, :, None]
        anchors.append(torch.cat((centres - half, centres + half), dim=3).reshape(-1, 4))
    return torch.cat(anchors), [len(level) for level in anchors]


SMALL_GRID, SMALL_LEVELS = grid(96, ((17.5, 4), (45.5, 8), (133.5, 16)))
ASSIGNERS: dict[str, Assigner] = {
    "iou": MaxIoUAssigner(),
    "iou, no low quality": MaxIoUAssigner(0.5, 0.4, low_quality=False),
    "atss": ATSSAssigner(level_sizes=SMALL_LEVELS),
    "rfla": HierarchicalAssigner(),
    "rfla, paper": HierarchicalAssigner(paper=True),
}


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("objects", [1, 7, 60])
def test_max_iou_is_torchvisions_matcher(objects: int, low_quality: bool) -> None:
    for seed in range(5):
        gt_boxes = random_boxes(objects, seed).round()  # whole pixels, so that there are ties
        gt_boxes[:, 2:] += 1
        priors = torch.cat((random_boxes(300, seed + 100).round(), SMALL_GRID))
        priors[:5, 2:] = priors[:5, :2]  # empty, as proposals clipped to the image may be
        for foreground, background in ((0.7, 0.3), (0.5, 0.5), (0.3, 0.0)):
            matcher = det_utils.Matcher(foreground, background, allow_low_quality_matches=low_quality)
            found = MaxIoUAssigner(foreground, background, low_quality=low_quality)(gt_boxes, priors)
            assert torch.equal(found, matcher(box_iou(gt_boxes, priors)))


def test_an_object_that_nothing_overlaps_takes_nothing() -> None:
    """torchvision's matcher makes every prior its own."""
    gt_boxes = torch.cat((random_boxes(3, 0), torch.tensor([[500.0, 500, 510, 510]])))
    matched = det_utils.Matcher(0.7, 0.3, allow_low_quality_matches=True)(box_iou(gt_boxes, SMALL_GRID))
    assert (matched >= 0).all()
    assert torch.equal(MaxIoUAssigner()(gt_boxes, SMALL_GRID), MaxIoUAssigner()(gt_boxes[:3], SMALL_GRID))


def atss_by_loops(gt_boxes: Tensor, priors: Tensor, level_sizes: list[int], topk: int) -> list[int]:
    best: list[tuple[float, int]] = [(-1.0, -1)] * len(priors)
    iou = box_iou(gt_boxes, priors).tolist()
    centres = ((priors[:, :2] + priors[:, 2:]) / 2).tolist()
    for number, (x1, y1, x2, y2) in enumerate(gt_boxes.tolist()):
        candidates: list[int] = []
        start = 0
        for size in level_sizes:
            distance = {
                prior: ((x1 + x2) / 2 - centres[prior][0]) ** 2 + ((y1 + y2) / 2 - centres[prior][1]) ** 2
                for prior in range(start, start + size)
            }
            candidates += sorted(distance, key=lambda prior: (distance[prior], prior))[:topk]
            start += size
        values = torch.tensor([iou[number][prior] for prior in candidates])
        threshold = float(values.mean() + values.std())
        for prior in candidates:
            x, y = centres[prior]
            if iou[number][prior] >= threshold and x1 < x < x2 and y1 < y < y2 and iou[number][prior] > best[prior][0]:
                best[prior] = (iou[number][prior], number)
    return [number for _, number in best]


@pytest.mark.parametrize("topk", [1, 9])
def test_atss_by_loops(topk: int) -> None:
    priors, level_sizes = grid(48, ((16.0, 8), (32.0, 16)))
    for seed in range(5):
        gt_boxes = random_boxes(6, seed, extent=30)
        expected = atss_by_loops(gt_boxes, priors, level_sizes, topk)
        assert ATSSAssigner(topk, level_sizes)(gt_boxes, priors).tolist() == expected
        assert ATSSAssigner(topk)(gt_boxes, priors, level_sizes).tolist() == expected


def test_atss_by_hand() -> None:
    """Of three priors, with IoU 1, 9/23 and 0, only the first reaches the mean 0.46 plus the deviation 0.5."""
    gt_boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    priors = torch.tensor([[0.0, 0.0, 4.0, 4.0], [1.0, 1.0, 5.0, 5.0], [20.0, 20.0, 24.0, 24.0]])
    assert ATSSAssigner(9, [3])(gt_boxes, priors).tolist() == [0, -1, -1]
    assert ATSSAssigner(9, [1])(gt_boxes, priors[1:2]).tolist() == [0]  # one candidate is its own mean
    assert ATSSAssigner(9, [1, 0])(gt_boxes, priors[2:]).tolist() == [-1]  # not inside


def rfla_by_loops(gt_boxes: Tensor, priors: Tensor, topk: tuple[int, int], ratio: float) -> list[int]:
    assigned = [-1] * len(priors)
    for count, scaled in zip(topk, (priors, scale_boxes(priors, ratio)), strict=True):
        kl = gaussian_kl(gt_boxes, scaled).tolist()
        free = [prior for prior in range(len(priors)) if assigned[prior] < 0]
        asked: dict[int, list[int]] = {}
        for number in range(len(gt_boxes)):
            for prior in sorted(free, key=lambda prior: (kl[number][prior], prior))[:count]:
                asked.setdefault(prior, []).append(number)
        for prior, numbers in asked.items():
            assigned[prior] = min(numbers, key=lambda number: (kl[number][prior], number))
    return assigned


@pytest.mark.parametrize("topk", [(3, 1), (1, 0), (2, 4), (300, 1)])
def test_rfla_by_loops(topk: tuple[int, int]) -> None:
    for seed in range(3):
        for priors in (random_boxes(400, seed + 100), SMALL_GRID[:900]):
            for gt_boxes in (
                random_boxes(8, seed),
                random_boxes(8, seed, largest=3).round() + torch.tensor([0, 0, 1, 1]),
            ):
                expected = rfla_by_loops(gt_boxes, priors, topk, 0.9)
                assert HierarchicalAssigner(topk, 0.9)(gt_boxes, priors).tolist() == expected


def released_by_loops(gt_boxes: Tensor, priors: Tensor, topk: tuple[int, int], ratio: float) -> list[int]:
    steps = []
    for count, scaled in zip(topk, (priors, scale_boxes(priors, ratio)), strict=True):
        kl = gaussian_kl(gt_boxes, scaled).tolist()
        step = [-2 if min(row[prior] for row in kl) <= 0.25 else -1 for prior in range(len(priors))]
        for number, row in enumerate(kl):
            bound = sorted(row)[count - 1]
            for prior, value in enumerate(row):
                if value <= bound:
                    step[prior] = number
        steps.append(step)
    return [first if first >= 0 else second for first, second in zip(*steps, strict=True)]


def test_rfla_as_released_by_loops() -> None:
    for seed in range(3):
        for priors in (random_boxes(400, seed + 100), SMALL_GRID):
            gt_boxes = random_boxes(12, seed, largest=30).round() + torch.tensor([0, 0, 1, 1])
            expected = released_by_loops(gt_boxes, priors, (3, 1), 0.9)
            assert HierarchicalAssigner(paper=True)(gt_boxes, priors).tolist() == expected
    assert -2 in expected


def test_rfla_by_hand() -> None:
    """The nearest two of four priors in step 1, one more in step 2; the object is far from touching the third."""
    gt_boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    priors = torch.tensor([[40.0, 0, 48, 8], [20.0, 0, 28, 8], [0.0, 0, 8, 8], [-3.0, -3, 5, 5]])
    assert HierarchicalAssigner((1, 0))(gt_boxes, priors).tolist() == [-1, -1, -1, 0]
    assert HierarchicalAssigner((2, 0))(gt_boxes, priors).tolist() == [-1, -1, 0, 0]
    assert HierarchicalAssigner((2, 1))(gt_boxes, priors).tolist() == [-1, 0, 0, 0]
    assert HierarchicalAssigner((2, 1), paper=True)(gt_boxes, priors).tolist() == [-1, -1, 0, 0]


def test_rfla_contest_goes_to_the_better_score_whatever_the_order() -> None:
    gt_boxes = torch.tensor([[0.0, 0, 8, 8], [1.0, 0, 9, 8]])
    prior = torch.tensor([[0.0, 0, 8, 8]])
    assert HierarchicalAssigner((1, 0))(gt_boxes, prior).tolist() == [0]
    assert HierarchicalAssigner((1, 0))(gt_boxes.flip(0), prior).tolist() == [1]
    assert HierarchicalAssigner((1, 0), paper=True)(gt_boxes, prior).tolist() == [1]


def test_rfla_ties_go_to_the_lowest_index() -> None:
    gt_boxes = torch.tensor([[10.0, 10, 14, 14]])
    around = torch.tensor([[6.0, 10, 10, 14], [14.0, 10, 18, 14], [10.0, 6, 14, 10], [10.0, 14, 14, 18]])
    assert HierarchicalAssigner((2, 0))(gt_boxes, around).tolist() == [0, 0, -1, -1]
    assert HierarchicalAssigner((2, 0), paper=True)(gt_boxes, around).tolist() == [0, 0, 0, 0]
    assert HierarchicalAssigner((1, 0))(gt_boxes.expand(3, 4), around[:1]).tolist() == [0]


def test_rfla_every_tiny_object_gets_its_share() -> None:
    """Objects of 2 to 6 pixels, too far apart to contest; their IoU with 17-pixel anchors is 0.12 at most."""
    corners = torch.cartesian_prod(torch.arange(4), torch.arange(4)) * 24.0 + 5
    sides = 2 + torch.arange(32).view(16, 2) % 5
    found = HierarchicalAssigner()(torch.cat((corners, corners + sides), dim=1), SMALL_GRID)
    assert (found[found >= 0].bincount(minlength=16) == 4).all()


def region_by_loops(gt_boxes: Tensor, priors: Tensor, level_sizes: list[int], strides: list[int]) -> list[int]:
    """The middle fifth of each object of a square image, in columns and rows, on the level of anchors of 4 strides."""
    assigned = [-1] * len(priors)
    for number in sorted(range(len(gt_boxes)), key=lambda n: -areas(gt_boxes)[n].item()):  # the smallest comes last
        x1, y1, x2, y2 = gt_boxes[number].tolist()
        octaves = math.log2(math.sqrt((x2 - x1) * (y2 - y1)) / (4 * strides[0]))
        level = min(max(math.floor(octaves + 0.5), 0), len(strides) - 1)
        stride, side = strides[level], math.isqrt(level_sizes[level])
        start = sum(level_sizes[:level])
        low, high = (
            [min(max(round((0.6 * a + 0.4 * b) / stride), 0), side - 1) for a, b in pairs]
            for pairs in (((x1, x2), (y1, y2)), ((x2, x1), (y2, y1)))
        )
        for row in range(low[1], high[1] + 1):
            for column in range(low[0], high[0] + 1):
                assigned[start + row * side + column] = number
    return assigned


def test_regions_by_loops() -> None:
    anchors, level_sizes = grid(96, ((16.0, 4), (32.0, 8), (64.0, 16)))
    priors, level_sizes = anchors[1::3], [size // 3 for size in level_sizes]  # of the three ratios
    for seed in range(5):
        gt_boxes = random_boxes(30, seed, extent=95, largest=3 + 30 * seed)
        found = RegionAssigner((4, 8, 16), anchor_scale=4)(gt_boxes, priors, level_sizes)
        assert found.tolist() == region_by_loops(gt_boxes, priors, level_sizes, [4, 8, 16])
    assert (RegionAssigner((4, 8, 16), 4)(torch.zeros(0, 4), priors, level_sizes) == -1).all()


def test_regions_by_hand() -> None:
    """Places at 0, 4, 8 and 12 px, and of the second level at 0 and 8."""
    anchors, (fine, coarse) = grid(16, ((4.0, 4), (8.0, 8)))
    assign = partial(RegionAssigner((4, 8), anchor_scale=1), priors=anchors[1::3], level_sizes=[fine // 3, coarse // 3])
    between, beyond, large = [5.0, 9.0, 6.5, 10.5], [14.0, 0.5, 16.0, 2.5], [0.0, 0.0, 40.0, 16.0]
    for box, owned in ((between, {9}), (beyond, {3}), (large, {19})):
        assert set(assign(torch.tensor([box])).eq(0).nonzero().flatten().tolist()) == owned
    found = assign(torch.tensor([[4.0, 8.0, 7.0, 11.0], between, between]))
    assert found[9] == 1  # the smallest, and of equals the first


@pytest.mark.parametrize("name", [name for name in ASSIGNERS if name != "rfla, paper"])
def test_order_of_objects_is_of_no_matter(name: str) -> None:
    """Neither for who is positive nor, without ties, for the object."""
    gt_boxes = random_boxes(40, 3)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    expected, found = ASSIGNERS[name](gt_boxes, SMALL_GRID), ASSIGNERS[name](gt_boxes[order], SMALL_GRID)
    assert torch.equal(found >= 0, expected >= 0)
    assert torch.equal(order[found[found >= 0]], expected[expected >= 0])


@pytest.mark.parametrize("name", ASSIGNERS)
@pytest.mark.parametrize(("block", "pairs"), [(256, 1), (64, 10_000), (1, 7), (16, 3_000), (5_000, 2**20)])
def test_size_of_blocks_and_chunks_is_of_no_matter(
    monkeypatch: pytest.MonkeyPatch, name: str, block: int, pairs: int
) -> None:
    priors, level_sizes = grid(48, ((17.5, 4), (45.5, 8)))
    assigner = ATSSAssigner(level_sizes=level_sizes) if name == "atss" else ASSIGNERS[name]
    gt_boxes = random_boxes(10, 1, extent=40).round() + torch.tensor([0, 0, 1, 1])
    expected = assigner(gt_boxes, priors)
    monkeypatch.setattr(blocks, "BLOCK", block)
    monkeypatch.setattr(blocks, "PAIRS_AT_ONCE", pairs)
    assert torch.equal(assigner(gt_boxes, priors), expected)


@pytest.mark.parametrize("name", ASSIGNERS)
def test_empty(name: str) -> None:
    found = ASSIGNERS[name](torch.zeros(0, 4), SMALL_GRID)
    assert found.dtype == torch.int64
    assert (found == -1).all()
    assert found.shape == (len(SMALL_GRID),)
    if name != "atss":
        assert ASSIGNERS[name](random_boxes(2, 0), torch.zeros(0, 4)).shape == (0,)


def test_fewer_priors_than_asked_for() -> None:
    gt_boxes, priors = random_boxes(2, 0), random_boxes(2, 1)
    assert (HierarchicalAssigner()(gt_boxes, priors) >= 0).all()
    assert (HierarchicalAssigner(paper=True)(gt_boxes, priors) == 1).all()


@pytest.mark.parametrize("name", ASSIGNERS)
def test_inputs_are_left_alone(name: str) -> None:
    gt_boxes, priors = random_boxes(20, 0).requires_grad_(), SMALL_GRID.clone().requires_grad_()
    before = gt_boxes.detach().clone()
    found = ASSIGNERS[name](gt_boxes, priors)
    assert torch.equal(gt_boxes, before)
    assert torch.equal(priors, SMALL_GRID)
    assert not found.requires_grad


@pytest.mark.parametrize("name", ASSIGNERS)
def test_half_precision_is_computed_in_float32(name: str) -> None:
    gt_boxes = random_boxes(20, 0).bfloat16()
    assert torch.equal(ASSIGNERS[name](gt_boxes, SMALL_GRID), ASSIGNERS[name](gt_boxes.float(), SMALL_GRID))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MaxIoUAssigner(0.3, 0.7), "background <= foreground"),
        (lambda: ATSSAssigner(0), "topk must be at least 1, got 0"),
        (lambda: HierarchicalAssigner((0, 1)), "topk must be two numbers"),
        (lambda: HierarchicalAssigner(ratio=0), "ratio must be positive, got 0"),
        (lambda: RegionAssigner((4, 8), 2, fraction=1.5), "fraction must be from 0 to 1, got 1.5"),
        (lambda: ATSSAssigner()(random_boxes(1, 0), SMALL_GRID), "give level_sizes"),
        (lambda: ATSSAssigner(level_sizes=[3])(random_boxes(1, 0), SMALL_GRID), "level_sizes must add up"),
        (lambda: MaxIoUAssigner()(torch.zeros(4), SMALL_GRID), "gt_boxes must have shape [N, 4], got [4]"),
        (lambda: MaxIoUAssigner()(random_boxes(1, 0), torch.tensor([[2.0, 0, 1, 1]])), "with x1 <= x2 and y1 <= y2"),
        (lambda: HierarchicalAssigner()(torch.zeros(1, 4), SMALL_GRID), "gt_boxes[0] must be finite with x1 < x2"),
        (lambda: HierarchicalAssigner()(random_boxes(1, 0), torch.full((2, 4), torch.nan)), "priors[0] must be finite"),
    ],
)
def test_errors(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def of_a_large_image(name: str) -> tuple[Assigner, Tensor]:
    """The assigner, and some 200,000 priors: RFLA's anchors of 912x912 pixels, or FCOS's places of 1568x1568."""
    if name == "fcos":
        places, level_sizes = grid(1568, tuple((float(stride), stride) for stride in (4, 8, 16, 32, 64)))
        level_sizes = [size // 3 for size in level_sizes]  # of the three ratios
        return partial(FCOSAssigner((4, 8, 16, 32, 64)), level_sizes=level_sizes), places[1::3]
    priors, level_sizes = grid(912, ((17.5, 4), (45.5, 8), (133.5, 16), (213.5, 32), (277.5, 64)))
    return ATSSAssigner(level_sizes=level_sizes) if name == "atss" else ASSIGNERS[name], priors


def assign_five_thousand(name: str) -> Callable[[], None]:
    """Gives an assigner 5,000 objects of 4 to 19 pixels."""
    gt_boxes = random_boxes(5000, 0, extent=890, largest=15) + torch.tensor([0, 0, 3, 3])
    assigner, priors = of_a_large_image(name)
    assert len(priors) > 200_000

    def assign() -> None:
        assert (assigner(gt_boxes, priors) >= 0).sum() > 5000

    return assign


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(name for name in ASSIGNERS if name != "iou, no low quality"), "fcos"])
def test_five_thousand_objects(name: str, cost_alone: Callable[..., Any]) -> None:
    """Bounds that only an assigner exceeds which scores all pairs; prints what it took.

    One matrix of all pairs has 5,000 * 200,000 * 4 bytes = 4 GB, and an assigner needs several. Made in parts, for each
    object against all priors, it took these assigners 110 s (RFLA's) to 520 s. FCOS's compares all pairs, but only
    whether a place lies inside a box, and scores what is left.
    """
    cost = cost_alone(assign_five_thousand, name)
    print(f"{name}: {cost.seconds:.1f} s, {cost.megabytes:.0f} MB more")
    assert cost.megabytes < 400
    assert cost.seconds < 30
