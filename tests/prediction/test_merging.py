"""`suppress`: torchvision's suppression where that has the same rule, and a plain loop elsewhere."""

from __future__ import annotations

import resource
from typing import Literal

import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_area, nms

from srtod.prediction import merging, suppress


def draw(count: int, span: float, side: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * span
    sides = torch.rand(count, 2, generator=generator) * side
    labels = torch.randint(0, 3, (count,), generator=generator)
    return torch.cat([corners, corners + sides], dim=1), torch.rand(count, generator=generator), labels


@pytest.mark.parametrize("most_pairs", [500, 2**20])
@pytest.mark.parametrize(("count", "span", "side"), [(0, 9, 9), (1, 9, 9), (300, 100, 20), (400, 1, 20), (300, 900, 9)])
def test_it_is_torchvisions_nms(
    count: int, span: float, side: float, most_pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "MOST_PAIRS", most_pairs)
    boxes, scores, labels = draw(count, span, side)
    for threshold in (0.1, 0.5, 0.9):
        moved = boxes - span / 3  # below 0, too; there torchvision's batched_nms lets classes meet
        assert torch.equal(suppress(moved, scores, threshold=threshold), nms(moved, scores, threshold))
        of_classes = suppress(boxes, scores, labels, threshold=threshold)
        assert torch.equal(of_classes, batched_nms(boxes, scores, labels, threshold))


def test_boxes_of_very_different_sizes_meet() -> None:
    boxes, scores, _ = draw(200, 1000, 10)
    large, others, _ = draw(20, 100, 2000, seed=1)
    boxes, scores = torch.cat([boxes, large]), torch.cat([scores, others])
    assert torch.equal(suppress(boxes, scores, threshold=0.3), nms(boxes, scores, 0.3))


@pytest.mark.parametrize("overlap", ["iou", "ios"])
def test_the_order_and_the_overlap_are_as_said(overlap: Literal["iou", "ios"]) -> None:
    boxes, scores, _ = draw(120, 60, 30)
    parts, groups = torch.arange(120) % 3 == 0, torch.arange(120) % 5
    order = sorted(range(120), key=lambda index: (bool(parts[index]), -float(scores[index])))
    kept: list[int] = []
    for index in order:
        shared = (
            torch.minimum(boxes[kept, 2:], boxes[index, 2:]) - torch.maximum(boxes[kept, :2], boxes[index, :2])
        ).clamp(min=0)
        areas, area = box_area(boxes[kept]), box_area(boxes[index : index + 1])
        smaller = parts[kept] | parts[index] | (overlap == "ios")
        whole = torch.where(smaller, torch.minimum(areas, area), areas + area - shared.prod(dim=1))
        if not ((shared.prod(dim=1) > 0.4 * whole) & (groups[kept] != groups[index])).any():
            kept.append(index)
    expected = sorted(kept, key=lambda index: -float(scores[index]))
    found = suppress(boxes, scores, overlap=overlap, threshold=0.4, parts=parts, groups=groups)
    assert found.tolist() == expected
    assert len(found) > len(suppress(boxes, scores, overlap=overlap, threshold=0.4, parts=parts))


@pytest.mark.slow
def test_many_boxes_on_one_another_need_little_memory() -> None:
    boxes = torch.tensor([[5.0, 5, 20, 20]]).repeat(25_000, 1) + torch.randn(25_000, 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(suppress(boxes, torch.rand(25_000), overlap="ios")) < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1024  # in KiB; all pairs take 2.5 GB
