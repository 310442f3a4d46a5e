"""RFLA's region proposal network."""

from __future__ import annotations

import re
from collections import OrderedDict

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from srtod.models.boxes import BoxCoder, scale_boxes
from srtod.models.heads.anchor_generator import PyramidAnchors
from srtod.models.heads.rfla import rfla_region_proposal_network
from srtod.models.heads.two_stage import ProposalNetwork

FIELDS = (35, 91, 267, 427, 555)
STRIDES = (4, 8, 16, 32, 64)


def network(paper: bool = False) -> ProposalNetwork:
    torch.manual_seed(0)
    return rfla_region_proposal_network(8, STRIDES, receptive_fields=FIELDS, proposals=50, paper=paper)


def example(dtype: torch.dtype = torch.float32) -> tuple[ImageList, dict[str, Tensor]]:
    torch.manual_seed(1)
    features = OrderedDict(
        (f"p{n}", torch.randn(2, 8, 64 // s, 128 // s, dtype=dtype)) for n, s in enumerate(STRIDES, 2)
    )
    return ImageList(torch.zeros(2, 3, 64, 128), [(64, 128), (60, 100)]), features


TARGETS = [{"boxes": torch.tensor([[10.0, 12, 14, 17], [60.0, 30, 90, 50]])}, {"boxes": torch.zeros(0, 4)}]


def test_anchors_are_half_the_receptive_fields() -> None:
    anchors = PyramidAnchors(STRIDES, [(0.5 * field,) for field in FIELDS])(
        *[part if n == 0 else list(part.values()) for n, part in enumerate(example())]
    )
    assert len(anchors) == 2
    first = anchors[0][:3]  # of the place (0, 0), height by width 1/2, 1 and 2
    sides = first[:, 2:] - first[:, :2]
    torch.testing.assert_close(sides[:, 1] / sides[:, 0], torch.tensor([0.5, 1.0, 2.0]))
    torch.testing.assert_close(sides.prod(dim=1).sqrt(), torch.full((3,), 17.5))
    torch.testing.assert_close(first[:, :2], -first[:, 2:])
    last = anchors[0][-1]
    torch.testing.assert_close((last[2:] - last[:2]).prod().sqrt(), torch.tensor(277.5))
    assert len(anchors[0]) == 3 * sum((64 // s) * (128 // s) for s in STRIDES)


@pytest.mark.parametrize("paper", [False, True])
def test_losses_and_proposals(paper: bool) -> None:
    rpn = network(paper).train()
    proposals, losses = rpn(*example(), TARGETS)
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg"}
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in rpn.parameters())
    with torch.no_grad():
        proposals, losses = rpn.eval()(*example())
    assert losses == {}
    assert [len(boxes) <= 50 and len(boxes) > 0 for boxes in proposals] == [True, True]


def test_no_objects_at_all() -> None:
    losses = network().train()(*example(), [TARGETS[1], TARGETS[1]])[1]
    assert losses["loss_rpn_box_reg"] == 0
    assert losses["loss_objectness"].isfinite()


def test_autocast_leaves_boxes_in_float32() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        proposals, losses = network().train()(*example(), TARGETS)
    assert all(boxes.dtype == torch.float32 for boxes in proposals)
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())


def test_labels_follow_the_assigner() -> None:
    rpn = network()
    anchors = rpn.anchor_generator(example()[0], list(example()[1].values()))
    labels, boxes = rpn.assign_targets_to_anchors(anchors, TARGETS)
    assert [int(of_image.sum()) for of_image in labels] == [8, 0]  # two objects, 3 + 1 anchors each
    assigned = rpn.assigner(TARGETS[0]["boxes"], anchors[0])
    assert torch.equal(labels[0] == 1, assigned >= 0)
    assert torch.equal(boxes[0][labels[0] == 1], TARGETS[0]["boxes"][assigned[assigned >= 0]])
    assert boxes[1].shape == anchors[1].shape


def test_ignored_anchors_are_left_out() -> None:
    rpn = network(paper=True)
    anchors = rpn.anchor_generator(example()[0], list(example()[1].values()))
    sizes = [{"size": torch.tensor(size)} for size in example()[0].image_sizes]
    middle = {"boxes": anchors[0][3 * (8 * 32 + 16) : 3 * (8 * 32 + 16) + 1] + 0.25}  # of row 8 and column 16 of 16x32
    labels, _ = rpn.assign_targets_to_anchors(anchors, [middle | sizes[0], TARGETS[1] | sizes[1]])
    inside = (anchors[0][:, :2] >= 0).all(dim=1) & (anchors[0][:, 2:] < torch.tensor([128, 64])).all(dim=1)
    assert set(labels[0][inside].tolist()) == {-1.0, 0.0, 1.0}
    assert set(labels[0][~inside].tolist()) == {-1.0}


@pytest.mark.parametrize(("paper", "scale"), [(False, 1.0), (True, 0.9)])
def test_paper_trains_against_shrunken_anchors_but_decodes_with_full_ones(paper: bool, scale: float) -> None:
    rpn = network(paper)
    anchors, boxes = scale_boxes(TARGETS[0]["boxes"], 1.3), TARGETS[0]["boxes"]
    (targets,) = rpn.box_coder.encode([boxes], [anchors])
    torch.testing.assert_close(targets, BoxCoder().encode(boxes, scale_boxes(anchors, scale)))
    decoded = rpn.box_coder.decode(targets, [anchors])[:, 0]
    sides, expected = decoded[:, 2:] - decoded[:, :2], (boxes[:, 2:] - boxes[:, :2]) / scale
    torch.testing.assert_close(sides, expected, rtol=1e-5, atol=1e-4)


def test_errors() -> None:
    with pytest.raises(ValueError, match=re.escape("got 2 receptive fields for 5 strides")):
        rfla_region_proposal_network(8, STRIDES, receptive_fields=FIELDS[:2], proposals=50)
    with pytest.raises(ValueError, match="must be positive"):
        rfla_region_proposal_network(8, (4,), receptive_fields=(0,), proposals=50)
