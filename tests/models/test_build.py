"""Detectors by name: what each is made of, and how options reach the parts."""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.faster_rcnn import TwoMLPHead

from srtod.models import ANCHORS, DETECTORS, Detector, SelfReconstructionOptions, build_detector
from srtod.models.assigners import HierarchicalAssigner
from srtod.models.heads.anchor_generator import PyramidAnchors
from srtod.models.layers import SAConv2d

GUIDE = Path(__file__).resolve().parents[2] / "docs/models.md"


def build(name: str, **options: object) -> Detector:
    if name in ("deformable_detr", "dfine"):
        pytest.importorskip("transformers", reason="needs srtod[detr]")
    torch.manual_seed(0)
    small: dict[str, object] = {"backbone": "resnet18", "channels": 32, "min_size": None}
    return build_detector(name, 3, **(small | options))  # type: ignore[arg-type]


@functools.cache
def shared(name: str) -> Detector:
    """A detector that a test may run, but not change."""
    return build(name, score_threshold=0.0, detections_per_image=7)


def example() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, 64, 64, generator=generator), torch.rand(3, 50, 60, generator=generator)]
    boxes = torch.tensor([[8.0, 12.0, 18.0, 22.0], [30.0, 30.0, 42.0, 40.0]])
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    return images, [{"boxes": boxes, "labels": torch.tensor([1, 2])}, empty]


def test_names() -> None:
    """Checkpoints and presets hold the names that were published."""
    published = ["retinanet", "faster_rcnn", "cascade_rcnn", "detectors", "rfla", "fcos", "atss"]
    published += ["tridentnet", "cascade_rpn", "dyhead", "detectors_rfla"]
    assert [name for name in DETECTORS if name in published] == published
    with_scale = [
        "retinanet",
        "faster_rcnn",
        "cascade_rcnn",
        "detectors",
        "atss",
        "tridentnet",
        "cascade_rpn",
        "dyhead",
    ]
    assert [name for name in published if name in ANCHORS] == with_scale


@pytest.mark.skipif(not GUIDE.exists(), reason="needs the source tree")
def test_the_guide_has_a_row_for_each_detector() -> None:
    rows = {}
    for name in DETECTORS:
        detector = shared(name).eval()
        with torch.no_grad():
            batch, _, _ = detector.transform(example()[0])
            levels = [level.upper() for level in detector.neck(detector.backbone(batch.tensors))]
        neck, head = type(detector.neck).__name__, type(detector.head).__name__
        rows[name] = [f"`{neck}`, {levels[0]}-{levels[-1]}", f"`{head}`", levels[0]]
    table = re.findall(r"^\| `(\w+)` \| (`\w+`, P\d-P\d) \| (`\w+`)[^|]* \| (P\d) \|", GUIDE.read_text(), re.MULTILINE)
    assert {name: cells for name, *cells in table} == rows
    assert [name for name, *_ in table] == list(DETECTORS)


@pytest.mark.parametrize("name", DETECTORS)
def test_self_reconstruction_stands_on_the_finest_level(name: str) -> None:
    detector = shared(name).eval()
    images, _ = example()
    with torch.no_grad():
        batch, _, _ = detector.transform(images)
        features = detector.neck(detector.backbone(batch.tensors))
        detections = detector(images)
    finest = int(next(iter(features))[1:])  # docs/models.md has it too
    stride = 2**finest
    assert list(features) == [f"p{level}" for level in range(finest, finest + len(features))]
    assert next(iter(features.values())).shape == (2, 32, 64 // stride, 64 // stride)
    assert detector.self_reconstruction.reconstruction_head.scale == stride  # type: ignore[union-attr]
    assert all(0 < len(detection["boxes"]) <= 7 for detection in detections)


@pytest.mark.parametrize("name", DETECTORS)
def test_losses_reach_every_parameter(name: str) -> None:
    detector = shared(name).train()
    losses = detector(*example())
    assert all(loss.dim() == 0 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert [key for key, weight in detector.named_parameters() if weight.requires_grad and weight.grad is None] == []
    detector.zero_grad(set_to_none=True)


def test_the_default_anchor_scale_is_the_heads() -> None:
    """What a number does is tested with the layouts of the anchors."""
    scales = {"faster_rcnn": 4, "cascade_rcnn": 4, "detectors": 4, "retinanet": 4, "atss": 8}
    scales |= {"tridentnet": 4, "cascade_rpn": 4, "dyhead": 8}
    for name, scale in scales.items():
        [generator] = [module for module in shared(name).modules() if isinstance(module, PyramidAnchors)]
        layout = ANCHORS[name]
        assert generator.sizes[0] == pytest.approx([scale * layout.strides[0] * octave for octave in layout.octaves])


def test_detectors_without_an_anchor_scale_leave_it_aside() -> None:
    for name in set(DETECTORS) - set(ANCHORS):
        assert len(build(name, anchor_scale=2.0).state_dict()) == len(shared(name).state_dict())


def test_switchable_atrous_convolution_can_be_left_out() -> None:
    def switchable(detector: Detector) -> int:
        return sum(isinstance(module, SAConv2d) for module in detector.modules())

    assert switchable(shared("detectors")) > 0
    assert switchable(build("detectors", sac=False)) == switchable(shared("cascade_rcnn")) == 0


@pytest.mark.parametrize(
    "name", ["faster_rcnn", "cascade_rcnn", "detectors", "rfla", "tridentnet", "cascade_rpn", "detectors_rfla"]
)
def test_options_of_the_proposals(name: str) -> None:
    rpn = build(name, detections_per_image=3000).eval().head.rpn
    assert (rpn.post_nms_top_n(), rpn.allowed_border) == (3000, None)  # type: ignore[operator, union-attr]
    rpn = build(name, proposals=1500, allowed_border=4).eval().head.rpn
    assert (rpn.post_nms_top_n(), rpn.allowed_border) == (1500, 4)  # type: ignore[operator, union-attr]
    for width, options in ((1024, {}), (48, {"representation_size": 48})):
        heads = [module for module in build(name, **options).modules() if isinstance(module, TwoMLPHead)]
        assert {(head.fc6.out_features, head.fc7.in_features, head.fc7.out_features) for head in heads} == {
            (width,) * 3
        }


def test_detectors_rfla_has_the_parts_of_both() -> None:
    detector = build("detectors_rfla", backbone="resnet50", channels=16)
    assert any(isinstance(module, SAConv2d) for module in detector.backbone.modules())
    generator = detector.head.rpn.anchor_generator  # type: ignore[union-attr]
    assert [size for (size,) in generator.sizes] == [field / 2 for field in (35, 91, 267, 427, 555)]
    assert isinstance(detector.head.rpn.assigner, HierarchicalAssigner)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["deformable_detr", "dfine"])
def test_there_are_as_many_queries_as_detections(name: str) -> None:
    for cap, queries in ((100, 300), (700, 700)):
        detector = build(name, detections_per_image=cap, score_threshold=0.0).eval()
        assert detector.head.model.config.num_queries == queries  # type: ignore[union-attr]
        with torch.no_grad():
            assert all(len(detection["boxes"]) <= cap for detection in detector([torch.rand(3, 128, 128)]))
    with pytest.raises(ValueError, match="needs channels that are a multiple of 32, got 48"):
        build(name, channels=48)


def test_options_of_one_detector_alone() -> None:
    assert build("rfla", rfla_paper=True).head.rpn.allowed_border == 0  # type: ignore[union-attr]
    assert build("rfla", rfla_paper=True, allowed_border=4).head.rpn.allowed_border == 4  # type: ignore[union-attr]
    for name in ("faster_rcnn", "tridentnet"):
        head = build(name, box_loss="l1").head
        assert head.rpn.beta == head.roi_heads.beta == 0  # type: ignore[union-attr]
    assert len(set(build("tridentnet").head.valid_ranges)) == 3  # type: ignore[union-attr, arg-type]
    assert set(build("tridentnet", scale_aware=False).head.valid_ranges) == {(0, math.inf)}  # type: ignore[union-attr, arg-type]
    for name in DETECTORS:  # the others leave them aside
        build(
            name, box_loss="l1", sac=False, rfla_paper=True, proposals=50, allowed_border=0, self_reconstruction=False
        )


def test_every_option_of_self_reconstruction_is_passed_on() -> None:
    module = build("retinanet", enhancement="multiplication", difference="high_frequency", cutoff=0.25, threshold=None)
    reconstruction = module.self_reconstruction
    assert reconstruction is not None
    assert reconstruction.options == SelfReconstructionOptions(
        enhancement="multiplication", difference="high_frequency", cutoff=0.25, threshold=None
    )
    assert reconstruction.threshold is None


@pytest.mark.parametrize("self_reconstruction", [False, True])
@pytest.mark.parametrize(
    ("option", "near"), [("treshold", "threshold"), ("anchor_scales", "anchor_scale"), ("inplace", "it has name, ")]
)
def test_unknown_options(self_reconstruction: bool, option: str, near: str) -> None:
    with pytest.raises(TypeError, match=rf"no option '{option}'; .*\b{near}"):
        build("faster_rcnn", self_reconstruction=self_reconstruction, **{option: 1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "yolo"}, f"detector must be one of {', '.join(DETECTORS)}, got 'yolo'"),
        ({"num_classes": 1}, "num_classes counts the background"),
        ({"name": "detectors"}, "is made for ResNets, got the backbone 'mobilenet_v2'"),
        ({"name": "fcos", "channels": 36, "reconstruction": "paper"}, "multiple of scale=8"),
        ({"num_classes": 2.5}, "whole number of at least 2, got 2.5"),
        ({"threshold": 4}, "threshold must be from 0 to 1, got 4"),
        ({"threshold": 4, "self_reconstruction": False}, "threshold must be from 0 to 1, got 4"),
        ({"self_reconstruction": "no"}, "self_reconstruction must be true or false, got 'no'"),
        ({"sac": 1}, "sac must be true or false, got 1"),
        ({"detections_per_image": -1}, "detections_per_image must be positive, got -1"),
        ({"score_threshold": float("nan")}, "score_threshold must be a number, got nan"),
        ({"nms_threshold": 1.5}, "nms_threshold must be from 0 to 1, got 1.5"),
        ({"anchor_scale": -1}, "anchor_scale must be positive, got -1"),
        ({"anchor_scale": "auto"}, "anchor_scale must be a number or none, got 'auto'"),
        ({"min_size": [800, -1]}, "min_size must be positive, got [800, -1]"),
        ({"scale": float("inf")}, "scale must be a number, got inf"),
        ({"channels": 0}, "channels must be positive, got 0"),
        ({"trainable_layers": -1}, "trainable_layers must not be negative, got -1"),
        ({"norm": "layer"}, "norm must be one of frozen_batch, batch, group or none, got 'layer'"),
        ({"weights": 3}, "weights must be text or none, got 3"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    small = {"name": "faster_rcnn", "num_classes": 2, "backbone": "mobilenet_v2", "channels": 32}
    with pytest.raises(ValueError, match=re.escape(message)):
        build_detector(**(small | options))  # type: ignore[arg-type]
