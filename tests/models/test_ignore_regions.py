"""Ignore regions in training: nothing inside is background, objects stay objects, and outside nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from srtod.models.assigners import BACKGROUND, IGNORED, owners, without_negatives_inside
from srtod.models.checks import check_targets
from srtod.models.heads import ATSSHead, CascadeHead, FCOSHead, RetinaNetHead, TwoStageHead
from srtod.models.heads.dense import DenseHead, LevelPredictions
from srtod.models.heads.roi_heads import RoIHeads
from srtod.models.heads.two_stage import region_proposal_network

SIZE = 96
REGION = [48.0, 0.0, 96.0, 96.0]  # the right half of the image
INSIDE, OUTSIDE = [60.0, 40.0, 76.0, 56.0], [12.0, 40.0, 28.0, 56.0]
DENSE_HEADS: list[Callable[..., DenseHead]] = [RetinaNetHead, FCOSHead, ATSSHead]


def random_boxes(count: int, seed: int, extent: float = 80, largest: float = 30) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * extent
    return torch.cat((corners, corners + torch.rand(count, 2, generator=generator) * largest), dim=1)


def target(*objects: list[float], ignore: list[list[float]] | None = None) -> dict[str, Tensor]:
    found = {"boxes": torch.tensor(objects).reshape(-1, 4), "labels": torch.ones(len(objects), dtype=torch.int64)}
    return found if ignore is None else found | {"ignore": torch.tensor(ignore, dtype=torch.float32).reshape(-1, 4)}


def centre_in_region(boxes: Tensor) -> Tensor:
    return (boxes[:, 0] + boxes[:, 2]) / 2 >= REGION[0]


# The rule


def test_the_rule_by_hand() -> None:
    priors = torch.tensor(
        [
            [0.0, 0, 8, 8],  # half of it inside
            [-1.0, 0, 7, 8],  # a little less
            [4.0, 2, 6, 6],  # all of it
            [0.0, -8, 16, 20],  # around the region
            [6.0, 4, 6, 4],  # without extent
            [40.0, 0, 48, 8],
        ]
    )
    found = without_negatives_inside(torch.full((6,), BACKGROUND), priors, torch.tensor([[4.0, 0.0, 12.0, 8.0]]))
    assert found.tolist() == [IGNORED, BACKGROUND, IGNORED, IGNORED, IGNORED, BACKGROUND]


def test_all_that_cocos_crowd_rule_ignores_is_ignored() -> None:
    """Half of a box or more in one region: then its centre is in it, too."""
    priors, regions = random_boxes(3000, 0), random_boxes(12, 1)
    corners = torch.maximum(priors[:, None, :2], regions[:, :2]), torch.minimum(priors[:, None, 2:], regions[:, 2:])
    shared = (corners[1] - corners[0]).clamp(min=0).prod(dim=2) / (priors[:, 2:] - priors[:, :2]).prod(dim=1)[:, None]
    found = without_negatives_inside(torch.full((3000,), BACKGROUND), priors, regions)
    by_coco = (shared > 0.5).any(dim=1)
    assert by_coco.sum() > 300
    assert (found[by_coco] == IGNORED).all()
    assert (found[(shared == 0).all(dim=1)] == BACKGROUND).all()


def test_only_background_changes_and_chunks_are_of_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    priors, regions = random_boxes(500, 0), random_boxes(9, 1)
    before = torch.arange(500) % 5 - 2
    given = before.clone()
    found = without_negatives_inside(given, priors, regions)
    assert torch.equal(given, before)
    changed = found != before
    assert changed.any()
    assert (before[changed] == BACKGROUND).all()
    assert (found[changed] == IGNORED).all()
    monkeypatch.setattr(owners, "PAIRS_AT_ONCE", 20)
    assert torch.equal(without_negatives_inside(given, priors, regions), found)


@pytest.mark.parametrize("regions", [None, torch.zeros(0, 4)])
def test_no_regions(regions: Tensor | None) -> None:
    before = torch.tensor([-1, 0, -2])
    assert torch.equal(without_negatives_inside(before, random_boxes(3, 0), regions), before)
    assert without_negatives_inside(before[:0], torch.zeros(0, 4), torch.tensor([REGION])).shape == (0,)


# One-stage heads


@pytest.mark.parametrize("build", DENSE_HEADS)
def test_dense_heads_learn_no_background_inside(build: Callable[..., DenseHead]) -> None:
    torch.manual_seed(0)
    head = build(8, 3, **({} if build is FCOSHead else {"anchor_scale": 2}))
    priors = head.priors([torch.zeros(1, 8, -(-SIZE // stride), -(-SIZE // stride)) for stride in head.strides])
    in_region = centre_in_region(torch.cat(priors))
    sizes = [len(level) for level in priors]
    logits, regression = torch.randn(1, sum(sizes), 2), torch.randn(1, sum(sizes), 4)
    centerness = torch.randn(1, sum(sizes))

    def learn(of_image: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The gradients of logits `[P, 2]` and regression `[P, 4]`."""
        leaves = [logits.clone().requires_grad_(), regression.clone().requires_grad_(), centerness]
        levels = [
            LevelPredictions(a, b, None if head.centerness is None else c)
            for a, b, c in zip(*(leaf.split(sizes, dim=1) for leaf in leaves), strict=True)
        ]
        sum(head.losses(levels, priors, [of_image]).values()).backward()
        return leaves[0].grad[0], leaves[1].grad[0]  # type: ignore[index]

    plain, plain_boxes = learn(target(INSIDE, OUTSIDE))
    found, boxes = learn(target(INSIDE, OUTSIDE, ignore=[REGION]))
    positive = boxes.any(dim=1)
    assert (positive & in_region).any()
    assert (positive & ~in_region).any()
    assert torch.equal(boxes, plain_boxes)
    assert plain[in_region & ~positive].any()
    assert not found[in_region & ~positive].any()
    assert torch.equal(found[positive | ~in_region], plain[positive | ~in_region])


# Two-stage heads


def test_the_proposal_network_learns_no_background_inside() -> None:
    network = region_proposal_network(8, (4, 8, 16, 32, 64), 2, proposals=50)
    levels = [torch.zeros(1, 8, -(-SIZE // stride), -(-SIZE // stride)) for stride in (4, 8, 16, 32, 64)]
    anchors = network.anchor_generator(ImageList(torch.zeros(1, 3, SIZE, SIZE), [(SIZE, SIZE)]), levels)
    (plain,), (plain_boxes,) = network.assign_targets_to_anchors(anchors, [target(INSIDE, OUTSIDE)])
    (labels,), (boxes,) = network.assign_targets_to_anchors(anchors, [target(INSIDE, OUTSIDE, ignore=[REGION])])
    background_inside = centre_in_region(anchors[0]) & (plain == 0)
    assert background_inside.any()
    assert (labels[background_inside] == -1).all()
    assert torch.equal(labels[~background_inside], plain[~background_inside])
    assert torch.equal(boxes, plain_boxes)
    assert (labels[centre_in_region(anchors[0])] == 1).any()


@pytest.mark.parametrize("head", [TwoStageHead, CascadeHead])
def test_roi_heads_sample_no_background_inside(head: Callable[..., TwoStageHead | CascadeHead]) -> None:
    proposals = torch.cat((random_boxes(400, 0), torch.tensor([INSIDE, OUTSIDE]) + 1))
    seen = 0
    for stage in [module for module in head(8, 3).modules() if isinstance(module, RoIHeads)]:
        _, _, (plain,), _ = stage.select_training_samples([proposals], [target(INSIDE, OUTSIDE)])
        (regions,), (matched,), (labels,), (offsets,) = stage.select_training_samples(
            [proposals], [target(INSIDE, OUTSIDE, ignore=[REGION])]
        )
        inside = centre_in_region(regions)
        assert len(plain) == 404
        assert set(labels.tolist()) == {0, 1}
        assert (labels[inside] == 1).all()
        assert {0, 1} == set(matched[labels == 1].tolist())
        assert (labels == 0).sum() == (~centre_in_region(proposals)).sum() - (labels[~inside] == 1).sum() + 1
        assert offsets.shape == regions.shape
        seen += 1
    assert seen == (3 if head is CascadeHead else 1)


def test_later_stages_of_the_cascade_honour_ignore_regions() -> None:
    """A proposal that a stage moves into the region is not sampled by the next."""
    torch.manual_seed(0)
    head = CascadeHead(8, 3, anchor_scale=2).train()
    moved = torch.nn.init.zeros_(head.stages[0].box_predictor.bbox_pred.bias)
    torch.nn.init.zeros_(head.stages[0].box_predictor.bbox_pred.weight)
    moved.data[0] = 30.0  # by 3 widths, as the stage's standard deviation is 0.1
    given: list[Tensor] = []
    head.stages[1].box_roi_pool.register_forward_hook(lambda module, args, output: given.extend(args[1]))
    features = {f"p{level}": torch.rand(1, 8, -(-SIZE // 2**level), -(-SIZE // 2**level)) for level in range(2, 7)}
    proposals = [torch.tensor([[10.0, 10, 26, 26], [2.0, 30, 8, 36]])]  # to x = 58 to 74 and to x = 20 to 26
    head._losses(features, proposals, [(SIZE, SIZE)], [target(ignore=[REGION])])
    torch.testing.assert_close(torch.cat(given), torch.tensor([[20.0, 30, 26, 36]]))


# Detectors; whole ones train with ignore regions in test_detectors.py


@pytest.mark.parametrize(
    ("regions", "error", "message"),
    [
        (torch.tensor([[0, 0, 1, 1]]), TypeError, r"\['ignore'\] must be a floating-point tensor, got torch.int64"),
        (None, TypeError, r"\['ignore'\] must be a floating-point tensor, got NoneType"),
        (torch.zeros(4), ValueError, r"\['ignore'\] must have shape \[M, 4\], got \[4\]; without ignore regions use"),
        (torch.tensor([[0.0, 0, 1, 1], [3.0, 0, 2, 1]]), ValueError, r"\['ignore'\]\[1\] must be finite with x1 <= x2"),
        (torch.full((1, 4), torch.nan), ValueError, r"\['ignore'\]\[0\] must be finite"),
    ],
)
def test_bad_regions(regions: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=r"targets\[0\]" + message):
        check_targets([target() | {"ignore": regions}], [torch.rand(3, 64, 64)], 3)


def test_regions_may_lack_extent() -> None:
    check_targets([target(ignore=[[5, 5, 5, 20]])], [torch.rand(3, 64, 64)], 3)


def test_no_regions_ask_nothing_of_the_device() -> None:
    none = torch.zeros(0, 4, device="meta")  # where a question is an error
    check_targets([target() | {"ignore": none}], [torch.rand(3, 64, 64)], 3)
