"""Detectors as functions of one tensor: they find what they find in a list of images, in outputs of fixed shapes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from srtod.models import DETECTORS, Detector, build_detector
from srtod.models.exportable import ExportableDetector
from srtod.models.heads.dense import DenseHead
from srtod.models.heads.padded import padded_topk, suppress

MOST = 30
EXPORTED = [name for name in DETECTORS if name not in ("deformable_detr", "dfine")]


def build(name: str, **options: object) -> Detector:
    """A small untrained detector whose scores differ from place to place."""
    torch.manual_seed(0)
    small = {"backbone": "resnet18", "norm": "group", "channels": 16, "min_size": None, "max_size": None}
    detector = build_detector(name, 4, **(small | {"detections_per_image": MOST} | options)).eval()
    if isinstance(detector.head, DenseHead):  # standard deviations of 0.01 suit 256 channels: all scores were alike
        for layer in detector.head.class_tower.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.normal_(detector.head.classifier.weight, std=0.02)
    return detector


def images() -> Tensor:
    """Two images whose sides are no multiples of 32."""
    return torch.rand(2, 3, 70, 100, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def check(detector: Detector, most: int = MOST) -> list[int]:
    """Both find the same; returns how many objects of each image."""
    boxes, labels, scores = ExportableDetector(detector)(images())
    assert boxes.shape == (2, most, 4)
    assert labels.shape == scores.shape == (2, most)
    counts = []
    for index, expected in enumerate(detector(list(images()))):
        count = len(expected["scores"])
        torch.testing.assert_close(scores[index, :count], expected["scores"])
        torch.testing.assert_close(boxes[index, :count], expected["boxes"])
        assert torch.equal(labels[index, :count], expected["labels"])
        assert not scores[index, count:].any()
        assert not labels[index, count:].any()
        assert not boxes[index, count:].any()
        counts.append(count)
    return counts


@pytest.mark.parametrize("name", EXPORTED)
def test_the_same_detections(name: str) -> None:
    assert check(build(name, score_threshold=0.01)) == [MOST, MOST]


@pytest.mark.parametrize("name", ["fcos", "faster_rcnn"])
def test_fewer_detections_than_places(name: str) -> None:
    some = check(build(name, score_threshold=0.0, nms_threshold=0.01, detections_per_image=1000), 1000)
    assert 0 < min(some) <= max(some) < 1000
    assert check(build(name, score_threshold=0.9999)) == [0, 0]


def test_suppression_keeps_images_and_groups_apart() -> None:
    box = torch.tensor([10.0, 10.0, 20.0, 20.0])
    boxes = torch.stack([box, box, box + 1, box + 9]).expand(2, -1, -1)
    scores = torch.tensor([[0.5, 0.6, 0.7, 0.1], [0.9, 0.8, 0.7, 0.6]])
    groups = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 0]])
    valid = torch.tensor([[True, True, True, True], [False, True, True, True]])
    index, kept = suppress(boxes, scores, groups, valid, iou=0.5, most=5)
    assert index[0, :3].tolist() == [2, 0, 3]
    assert index[1, :2].tolist() == [1, 3]
    assert kept.sum(dim=1).tolist() == [3, 2]


def test_the_best_of_fewer_than_asked_for() -> None:
    scores, index, found = padded_topk(torch.tensor([[-3.0, 2.0]]), 3)
    assert (index.tolist(), found.tolist()) == ([[1, 0, 0]], [[True, True, False]])
    assert scores[0, :2].tolist() == [2.0, -3.0]
