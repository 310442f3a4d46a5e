"""The head of Cascade R-CNN: samples, losses and refinement of each stage, and how the stages make detections."""

from __future__ import annotations

import math
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import roi_heads
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork

from srtod.models.backbones import build_backbone
from srtod.models.heads.cascade import STAGE_IOUS, STAGE_STDS, CascadeHead, ClassAgnosticPredictor
from srtod.models.heads.two_stage import region_proposal_network
from srtod.models.necks import FPN

STRIDES = (4, 8, 16, 32, 64)
CHANNELS = 16
CLASSES = 3
SIZE = (64, 64)


class Proposals(nn.Module):
    """A region proposal network that proposes what it is told."""

    def __init__(self, *boxes: Tensor) -> None:
        super().__init__()
        self.boxes = boxes

    def forward(self, batch: object, features: object, targets: object) -> tuple[list[Tensor], dict[str, Tensor]]:
        return [boxes.clone() for boxes in self.boxes], {}


def cascade(*proposals: Tensor, **options: float) -> CascadeHead:
    torch.manual_seed(0)
    rpn = Proposals(*proposals) if proposals else None
    return CascadeHead(CHANNELS, CLASSES, rpn=rpn, **options)  # type: ignore[arg-type]


def inputs(images: int = 1) -> tuple[ImageList, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    levels = [torch.rand(images, CHANNELS, -(-64 // s), -(-64 // s), generator=generator) for s in STRIDES]
    names = ["p2", "p3", "p4", "p5", "p6"]
    return ImageList(torch.zeros(images, 3, *SIZE), [SIZE] * images), OrderedDict(zip(names, levels, strict=True))


def target(*boxes: list[float]) -> dict[str, Tensor]:
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.ones(len(boxes), dtype=torch.int64)}


def moves(head: CascadeHead, *offsets: list[float]) -> None:
    """Makes each stage predict these (dx, dy, dw, dh) whatever it sees, before its standard deviations."""
    for stage, stage_offsets, stds in zip(head.stages, offsets, STAGE_STDS, strict=True):
        nn.init.zeros_(stage.box_predictor.bbox_pred.weight)
        stage.box_predictor.bbox_pred.bias.data = torch.tensor(stage_offsets) / torch.tensor(stds)


def classifies(head: CascadeHead, *logits: list[float]) -> None:
    """Makes each stage give these class logits whatever it sees."""
    for stage, stage_logits in zip(head.stages, logits, strict=True):
        nn.init.zeros_(stage.box_predictor.cls_score.weight)
        stage.box_predictor.cls_score.bias.data = torch.tensor(stage_logits)


def sampled(head: CascadeHead) -> list[dict[str, Tensor]]:
    """Fills with what each stage trains on when the head runs: proposals, labels and offsets of the first image."""
    seen: list[dict[str, Tensor]] = []
    for stage in head.stages:

        def record(*args: object, select: object = stage.select_training_samples) -> object:
            seen.append({"given": args[0][0].clone()})  # type: ignore[index]
            samples = select(*args)  # type: ignore[operator]
            seen[-1] |= {"proposals": samples[0][0], "labels": samples[2][0], "offsets": samples[3][0]}
            return samples

        stage.select_training_samples = record
    return seen


def test_stages_ask_for_rising_overlap() -> None:
    """Proposals with IoU 0.45, 0.55, 0.65 and 0.75 with their object, which is itself the last sample."""
    proposals = torch.tensor([[10.0, 10.0, 10 + width, 20.0] for width in (4.5, 5.5, 6.5, 7.5)])
    head = cascade(proposals).train()
    moves(head, *[[0.0] * 4] * 3)
    seen = sampled(head)
    head(*inputs(), [target([10, 10, 20, 20])])
    assert [stage["labels"].tolist() for stage in seen] == [
        [0, 1, 1, 1, 1],
        [0, 0, 1, 1, 1],
        [0, 0, 0, 1, 1],
    ]
    for stage, stds in zip(seen, STAGE_STDS, strict=True):
        assert torch.equal(stage["given"], proposals)  # unmoved, and the object was not handed on
        offsets = torch.tensor([(15 - 13.75) / 7.5, 0.0, torch.tensor(10 / 7.5).log(), 0.0]) / torch.tensor(stds)
        torch.testing.assert_close(stage["offsets"][3], offsets)
        assert not stage["offsets"][4].any()


def test_each_stage_gets_the_boxes_the_one_before_refined() -> None:
    proposals = torch.tensor([[10.0, 10.0, 20.0, 20.0], [40.0, 40.0, 48.0, 60.0]])  # an object and background
    head = cascade(proposals).train()
    moves(head, [0.1, 0.0, 0.0, 0.0], [0.0, 0.5, 0.0, 0.0], [0.0] * 4)
    seen = sampled(head)
    head(*inputs(), [target([11, 10, 21, 20])])
    torch.testing.assert_close(seen[1]["given"], torch.tensor([[11.0, 10, 21, 20], [40.8, 40, 48.8, 60]]))
    # The first box reached the object exactly in stage 2 (and cannot be refined further); the second meets the border.
    torch.testing.assert_close(seen[2]["given"], torch.tensor([[40.8, 50, 48.8, 64]]))


def test_boxes_without_extent_are_not_handed_on() -> None:
    proposals = torch.tensor([[10.0, 10.0, 20.0, 20.0], [40.0, 40.0, 50.0, 50.0]])
    head = cascade(proposals).train()
    moves(head, [3.0, 0.0, 0.0, 0.0], *[[0.0] * 4] * 2)  # moves the second to x = 70 in an image of width 64
    seen = sampled(head)
    losses = head(*inputs(), [target()])[1]
    torch.testing.assert_close(seen[1]["given"], torch.tensor([[40.0, 10.0, 50.0, 20.0]]))
    assert all(loss.isfinite() for loss in losses.values())


def test_no_proposals_and_no_objects() -> None:
    head = cascade(torch.zeros(0, 4))
    detections, losses = head.train()(*inputs(), [target()])
    assert detections == []
    assert all(loss == 0 for loss in losses.values())
    sum(losses.values()).backward()
    (detection,), losses = head.eval()(*inputs(), None)
    assert losses == {}
    assert [detection[key].shape for key in ("boxes", "labels", "scores")] == [(0, 4), (0,), (0,)]


def test_losses() -> None:
    """One proposal and its object: cross-entropy and SmoothL1 of beta 1, by hand and weighted 1, 0.5 and 0.25."""
    proposal = torch.tensor([[10.0, 10.0, 20.0, 20.0]])
    head = cascade(proposal).train()
    moves(head, *[[0.0] * 4] * 3)
    classifies(head, *[[0.3, 0.8, 0.1]] * 3)
    _, losses = head(*inputs(), [target([10.6, 10.0, 20.6, 20.0])])
    cross_entropy = nn.functional.cross_entropy(torch.tensor([[0.3, 0.8, 0.1]]), torch.tensor([1]))
    for number, (weight, stds) in enumerate(zip((1, 0.5, 0.25), STAGE_STDS, strict=True), start=1):
        dx = 0.06 / stds[0]  # 0.6, 1.2 and 1.8: below beta squared, above linear
        smooth = dx**2 / 2 if dx < 1 else dx - 0.5
        torch.testing.assert_close(losses[f"loss_classifier_{number}"], weight * cross_entropy)
        torch.testing.assert_close(losses[f"loss_box_reg_{number}"], torch.tensor(weight * smooth / 2))  # two samples


def test_a_quarter_of_the_samples_are_positive() -> None:
    generator = torch.Generator().manual_seed(0)
    near = torch.tensor([10.0, 10.0, 30.0, 30.0]) + torch.rand(400, 4, generator=generator)
    far = torch.tensor([40.0, 40.0, 50.0, 50.0]) + torch.rand(600, 4, generator=generator)
    head = cascade(torch.cat([near, far])).train()
    seen = sampled(head)
    head(*inputs(), [target([10, 10, 30, 30])])
    assert [len(stage["labels"]) for stage in seen] == [512, 512, 512]
    assert all(stage["labels"].sum() == 128 for stage in seen)


def test_logits_are_averaged_and_boxes_are_the_last_stages() -> None:
    head = cascade(torch.tensor([[10.0, 10.0, 20.0, 20.0]]), score_threshold=0.0).eval()
    moves(head, [0.1, 0.0, 0.0, 0.0], [0.0, 0.2, 0.0, 0.0], [0.0, 0.0, 0.0, torch.tensor(1.5).log().item()])
    logits = [[0.0, 1.0, 2.0], [1.0, 0.0, 3.0], [0.5, 0.5, -1.0]]
    classifies(head, *logits)
    (detection,), losses = head(*inputs(), None)
    assert losses == {}
    assert detection["labels"].tolist() == [2, 1]
    averages = [math.exp((0 + 1 + 0.5) / 3), math.exp((1 + 0 + 0.5) / 3), math.exp((2 + 3 - 1) / 3)]
    scores = [averages[label] / sum(averages) for label in (2, 1)]
    torch.testing.assert_close(detection["scores"], torch.tensor(scores))
    expected = torch.tensor([11.0, 9.5, 21.0, 24.5])  # right by 1, down by 2, then half as high again
    torch.testing.assert_close(detection["boxes"], expected.expand(2, 4))  # the same box whatever the class


def test_scores_stay_finite_when_a_class_is_impossible() -> None:
    head = cascade(torch.tensor([[10.0, 10.0, 20.0, 20.0]]), score_threshold=0.0).eval()
    classifies(head, *[[-1e4, 1e4, -1e4]] * 3)
    (detection,), _ = head(*inputs(), None)
    assert detection["labels"].tolist() == [1]
    assert detection["scores"].tolist() == [1.0]


def test_detections_are_suppressed_within_a_class_only() -> None:
    boxes = torch.tensor([[10.0, 10.0, 20.0, 20.0], [10.5, 10.0, 20.5, 20.0], [40.0, 40.0, 50.0, 50.0]])
    head = cascade(boxes, score_threshold=0.2).eval()
    moves(head, *[[0.0] * 4] * 3)
    classifies(head, *[[0.0, 0.2, 0.1]] * 3)
    (detection,), _ = head(*inputs(), None)
    assert detection["labels"].tolist() == [1, 1, 2, 2]
    capped = cascade(boxes, score_threshold=0.2, detections_per_image=3).eval()
    capped.load_state_dict(head.state_dict())
    assert len(capped(*inputs(), None)[0][0]["boxes"]) == 3


def test_images_are_kept_apart() -> None:
    """What a head finds in one image does not depend on the other images of the batch."""
    one, two = torch.tensor([[10.0, 10.0, 20.0, 20.0]]), torch.tensor([[4.0, 30.0, 60.0, 50.0], [1.0, 1.0, 9.0, 6.0]])
    head = cascade(one, two, score_threshold=0.0).eval()
    batch, features = inputs(images=2)
    both, _ = head(batch, features, None)
    for index, boxes in enumerate((one, two)):
        head.rpn.boxes = (boxes,)
        alone = {name: level[index : index + 1] for name, level in features.items()}
        (detection,), _ = head(ImageList(batch.tensors[:1], [SIZE]), alone, None)
        for key in detection:
            torch.testing.assert_close(detection[key], both[index][key])


def test_every_stage_learns_and_boxes_carry_no_gradient() -> None:
    proposals = torch.tensor([[10.0, 10.0, 20.0, 20.0], [40.0, 40.0, 48.0, 60.0]])
    head = cascade(proposals).train()
    batch, features = inputs()
    _, losses = head(batch, features, [target([11, 10, 21, 20])])
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in head.stages.parameters() if p.dim() > 1)
    head.zero_grad(set_to_none=True)
    _, losses = head(batch, features, [target([11, 10, 21, 20])])
    (losses["loss_classifier_3"] + losses["loss_box_reg_3"]).backward()
    assert all(parameter.grad is None for stage in list(head.stages)[:2] for parameter in stage.parameters())


def test_untrained_stages_leave_boxes_where_they_are() -> None:
    predictor = ClassAgnosticPredictor(1024, CLASSES)
    logits, offsets = predictor(torch.rand(5, 1024))
    assert logits.shape == (5, CLASSES)
    assert offsets.shape == (5, 4)
    assert offsets.abs().max() < 0.2


def test_proposal_network_assigns_as_torchvision() -> None:
    network = region_proposal_network(CHANNELS, STRIDES, 2, proposals=50)
    batch, features = inputs(images=2)
    anchors = network.anchor_generator(batch, list(features.values()))
    targets = [target([3, 5, 12, 13], [30, 20, 60, 61], [31, 21, 59, 60]), target()]
    labels, boxes = network.assign_targets_to_anchors(anchors, targets)
    expected_labels, expected_boxes = RegionProposalNetwork.assign_targets_to_anchors(network, anchors, targets)
    assert {-1, 0, 1} == set(labels[0].tolist())
    for index in range(2):
        assert torch.equal(labels[index], expected_labels[index])
        positive = labels[index] == 1
        assert torch.equal(boxes[index][positive], expected_boxes[index][positive])


def test_roi_heads_assign_as_torchvision() -> None:
    torch.manual_seed(0)
    corners = torch.rand(2, 300, 2) * 50
    proposals = [torch.cat((corner, corner + torch.rand(300, 2) * 14), dim=1) for corner in corners]
    boxes = [proposals[0][::30] + 1, torch.zeros(0, 4)]
    labels = [torch.arange(10) % 2 + 1, torch.zeros(0, dtype=torch.int64)]
    for stage in cascade().stages:
        matched, of_regions = stage.assign_targets_to_proposals(proposals, boxes, labels)
        expected, expected_labels = roi_heads.RoIHeads.assign_targets_to_proposals(stage, proposals, boxes, labels)
        assert 0 < (of_regions[0] > 0).sum() < 300
        for index in range(2):
            assert torch.equal(of_regions[index], expected_labels[index])
            positive = of_regions[index] > 0
            assert torch.equal(matched[index][positive], expected[index][positive])


def test_roi_heads_sample_as_torchvision() -> None:
    """Without ignore regions, and with the same random numbers."""
    corners = torch.rand(2, 900, 2, generator=torch.Generator().manual_seed(0)) * 50
    proposals = [torch.cat((corner, corner + 14), dim=1) for corner in corners]
    targets = [target(*(proposals[0][::30] + 1).tolist()), target()]
    for stage in cascade().stages:
        torch.manual_seed(1)
        found = stage.select_training_samples(list(proposals), targets)
        torch.manual_seed(1)
        expected = roi_heads.RoIHeads.select_training_samples(stage, list(proposals), targets)
        for index in range(2):
            positive = expected[2][index] > 0
            assert torch.equal(found[0][index], expected[0][index])
            assert torch.equal(found[2][index], expected[2][index])
            assert torch.equal(found[1][index][positive], expected[1][index][positive])
            assert torch.equal(found[3][index][positive], expected[3][index][positive])


def test_own_region_proposal_network() -> None:
    own = region_proposal_network(CHANNELS, STRIDES, 2, proposals=50)
    assert CascadeHead(CHANNELS, CLASSES, rpn=own).rpn is own
    assert cascade(detections_per_image=3000).eval().rpn.post_nms_top_n() == 3000
    assert [stage.proposal_matcher.high_threshold for stage in cascade().stages] == list(STAGE_IOUS)


@pytest.mark.parametrize("objects", [0, 1, 3])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_with_a_backbone(objects: int, bfloat16: bool) -> None:
    torch.manual_seed(0)
    body = build_backbone("resnet18")
    parts = nn.ModuleList([body, FPN(body.channels, CHANNELS), CascadeHead(CHANNELS, CLASSES, anchor_scale=2)])
    batch = ImageList(torch.rand(2, 3, *SIZE), [SIZE, (50, 60)])
    boxes = [[10.0 * i, 5.0, 10.0 * i + 8, 14.0] for i in range(objects)]
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        detections, losses = parts[2](batch, parts[1](body(batch.tensors)), [target(*boxes), target()])
    assert detections == []
    assert set(losses) == {
        "loss_objectness",
        "loss_rpn_box_reg",
        *(f"loss_{kind}_{number}" for kind in ("classifier", "box_reg") for number in (1, 2, 3)),
    }
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    assert [name for name, parameter in parts.named_parameters() if parameter.grad is None] == []

    parts.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        detections, losses = parts[2](batch, parts[1](body(batch.tensors)), None)
    assert losses == {}
    for detection, (height, width) in zip(detections, batch.image_sizes, strict=True):
        assert 0 < len(detection["boxes"]) <= 100
        assert detection["boxes"].dtype == detection["scores"].dtype == torch.float32
        assert detection["boxes"].min() >= 0
        assert (detection["boxes"].amax(dim=0)[2:] <= torch.tensor([width, height])).all()
        assert (detection["scores"].diff() <= 0).all()
