"""The region proposal network: which anchors it trains, its losses, and how many proposals it keeps."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import roi_heads
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork

from srtod.models.heads import TwoStageHead
from srtod.models.heads.roi_heads import RoIHeads
from srtod.models.heads.two_stage import ProposalNetwork, region_proposal_network

STRIDES = (4, 8, 16, 32, 64)
SIZES = [(64, 64), (40, 52)]  # the second image is padded in the batch


def network(**options: Any) -> ProposalNetwork:
    torch.manual_seed(0)
    return region_proposal_network(8, STRIDES, 2, **options)


def batch() -> tuple[ImageList, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    levels = [torch.randn(2, 8, -(-64 // stride), -(-64 // stride), generator=generator) for stride in STRIDES]
    return ImageList(torch.zeros(2, 3, 64, 64), SIZES), OrderedDict(
        zip(("p2", "p3", "p4", "p5", "p6"), levels, strict=True)
    )


def boxes(*values: list[float]) -> dict[str, Tensor]:
    return {"boxes": torch.tensor(values).reshape(-1, 4), "labels": torch.ones(len(values), dtype=torch.int64)}


# Anchors at the border


@pytest.mark.parametrize(
    ("border", "expected"),
    [
        (None, [1, 0, 0, 0, 0, 0]),
        (0, [-1, 1, 0, 0, -1, -1]),  # with the best anchor outside, the object's best is the second
        (1, [1, 0, 0, 0, 0, -1]),
    ],
)
def test_anchors_beyond_the_border_are_not_trained(border: float | None, expected: list[int]) -> None:
    """An image of 40 px height and 50 px width. IoU of the object with the first two anchors: 9 / 11 and 2 / 7."""
    anchors = torch.tensor(
        [
            [-1.0, 0, 9, 10],  # beyond the left border by 1 px
            [6.0, 0, 14, 10],
            [0.0, 0, 2, 2],  # touches the left and the upper border
            [40.0, 30, 49.5, 39.5],
            [40.0, 30, 50, 39],  # touches the right border
            [30.0, 20, 40, 41],  # beyond the lower border by 1 px
        ]
    )
    target = boxes([0.0, 0, 10, 10]) | {"size": torch.tensor([40, 50])}
    (labels,), (aims,) = network(allowed_border=border).assign_targets_to_anchors([anchors], [target])
    assert labels.tolist() == expected
    assert torch.equal(aims[labels == 1], target["boxes"])


def test_the_border_is_that_of_each_image_without_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    rpn = network(allowed_border=0).train()
    seen: list[tuple[list[Tensor], list[Tensor]]] = []

    def record(self: ProposalNetwork, anchors: list[Tensor], targets: list[dict[str, Tensor]]) -> Any:
        found = assign(self, anchors, targets)
        seen.append((anchors, found[0]))
        return found

    assign = ProposalNetwork.assign_targets_to_anchors
    monkeypatch.setattr(ProposalNetwork, "assign_targets_to_anchors", record)
    rpn(*batch(), [boxes([10, 10, 18, 18]), boxes()])
    ((anchors, labels),) = seen
    for (height, width), of_image, found in zip(SIZES, anchors, labels, strict=True):
        for (x1, y1, x2, y2), label in zip(of_image.tolist(), found.tolist(), strict=True):
            assert x1 >= 0 and y1 >= 0 and x2 < width and y2 < height or label == -1  # noqa: RUF021
        assert (found == 0).any()


def test_an_image_without_an_anchor_inside_has_no_loss() -> None:
    rpn = network(allowed_border=0).train()
    images, features = batch()
    losses = rpn(ImageList(images.tensors, [(4, 4)] * 2), features, [boxes([0, 0, 3, 3]), boxes()])[1]
    assert {name: loss.item() for name, loss in losses.items()} == {"loss_objectness": 0, "loss_rpn_box_reg": 0}


# Losses


@pytest.mark.parametrize(("beta", "box_loss"), [(1 / 9, 0.5 * 0.05**2 * 9 + 0.3 - 1 / 18), (0.0, 0.05 + 0.3)])
def test_losses_by_hand(beta: float, box_loss: float) -> None:
    """Two samples, one of them positive, whose offsets are 0.05 and 0.3 off: below beta squared, above linear."""
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    labels, aims = [torch.tensor([1, 0])], [torch.tensor([[0.05, -0.3, 0, 0], [9.0, 9, 9, 9]])]
    stage = TwoStageHead(8, 2).roi_heads
    stage.beta = beta
    predicted = torch.tensor([[7.0] * 4 + [0.0] * 4] * 2)  # of the background, then of the class
    found = stage.losses(logits, predicted, labels, aims)
    torch.testing.assert_close(found, (torch.tensor(2.0).log(), torch.tensor(box_loss / 2)))

    rpn = network(beta=beta)
    found = rpn.compute_loss(torch.zeros(2, 1), torch.zeros(2, 4), [torch.tensor([1.0, 0.0])], aims)
    torch.testing.assert_close(found, (torch.tensor(2.0).log(), torch.tensor(box_loss / 2)))


@pytest.mark.parametrize("seed", range(3))
def test_default_losses_are_torchvisions(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels, aims = [torch.randint(-1, 2, (400,), generator=generator).float()], [torch.randn(400, 4)]
    objectness, deltas = torch.randn(400, 1, generator=generator), torch.randn(400, 4, generator=generator)
    rpn = network()
    found = []
    for compute in (rpn.compute_loss, lambda *args: RegionProposalNetwork.compute_loss(rpn, *args)):
        torch.manual_seed(seed)
        found.append(compute(objectness, deltas, labels, aims))
    torch.testing.assert_close(*found)

    logits, offsets = torch.randn(400, 3, generator=generator), torch.randn(400, 12, generator=generator)
    classes = [torch.randint(0, 3, (400,), generator=generator)]
    stage = TwoStageHead(8, 3).roi_heads
    torch.testing.assert_close(
        stage.losses(logits, offsets, classes, aims), roi_heads.fastrcnn_loss(logits, offsets, classes, aims)
    )


def test_the_box_loss_is_that_of_proposals_and_regions() -> None:
    for box_loss, beta in (("smooth_l1", 1 / 9), ("l1", 0.0)):
        head = TwoStageHead(8, 2, box_loss=box_loss)
        assert [module.beta for module in head.modules() if isinstance(module, ProposalNetwork | RoIHeads)] == [
            beta
        ] * 2


# Their number


@pytest.mark.parametrize(
    ("options", "training", "evaluation"),  # before NMS of each level, and after it of the image
    [
        ({}, (2000, 2000), (1000, 1000)),
        ({"detections_per_image": 3000}, (2000, 2000), (3000, 3000)),
        ({"proposals": 3000}, (3000, 3000), (3000, 3000)),
        ({"proposals": 1000}, (2000, 1000), (1000, 1000)),
        ({"proposals": 50, "detections_per_image": 3000}, (2000, 50), (1000, 50)),
    ],
)
def test_how_many_proposals(options: dict[str, int], training: tuple[int, int], evaluation: tuple[int, int]) -> None:
    rpn = network(**options)
    assert (rpn.train().pre_nms_top_n(), rpn.post_nms_top_n()) == training
    assert (rpn.eval().pre_nms_top_n(), rpn.post_nms_top_n()) == evaluation


def test_no_more_proposals_than_asked_for() -> None:
    rpn = network(proposals=7)
    for mode in (True, False):
        proposals, _ = rpn.train(mode)(*batch(), [boxes([10, 10, 18, 18]), boxes()])
        assert [len(of_image) for of_image in proposals] == [7, 7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proposals": 0}, "proposals must be at least 1, got 0"),
        ({"allowed_border": -1}, "allowed_border must not be negative, got -1; None trains all anchors"),
        ({"box_loss": "giou"}, "unknown box_loss 'giou'; choose one of smooth_l1, l1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TwoStageHead(8, 2, **options)
