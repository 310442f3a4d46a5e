"""Self-reconstruction in torchvision's own detectors (examples/)."""

from __future__ import annotations

import copy
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
IMAGE_SIZES = [(64, 96), (80, 64)]
TORCHVISION_LOSSES = {
    "faster_rcnn": {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"},
    "retinanet": {"classification", "bbox_regression"},
}


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """examples/torchvision_detectors.py."""
    specification = importlib.util.spec_from_file_location("example", ROOT / "examples" / "torchvision_detectors.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def stock(request: pytest.FixtureRequest, example: ModuleType) -> tuple[torch.nn.Module, int]:
    """A plain torchvision detector and the stride of its finest level."""
    torch.manual_seed(0)
    constructor, scale = example.MODELS[request.param]
    return constructor(weights=None, weights_backbone=None, num_classes=2, min_size=64, max_size=96), scale


def batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, *size, generator=generator) for size in IMAGE_SIZES]
    return images, [{"boxes": torch.tensor([[8.0, 8.0, 20.0, 18.0]]), "labels": torch.tensor([1])} for _ in images]


@pytest.mark.parametrize("stock", ["faster_rcnn", "retinanet"], indirect=True)
def test_features_of_the_stock_detector_are_kept_or_enhanced(stock: tuple[Any, int], example: ModuleType) -> None:
    detector, scale = stock
    images, _ = batch()
    enhanced = example.add_self_reconstruction(copy.deepcopy(detector), scale, threshold=0.2).eval()
    untouched = example.add_self_reconstruction(copy.deepcopy(detector), scale, enhancement="none").eval()
    levels: dict[str, Any] = {}
    for name, model in {"plain": detector.eval(), "untouched": untouched, "enhanced": enhanced}.items():
        model.backbone.register_forward_hook(
            lambda module, inputs, features, name=name: levels.update({name: dict(features)})
        )
        with torch.no_grad():
            model(images)
        assert model.training is False
    assert levels["plain"].keys() == levels["enhanced"].keys()
    for key, level in levels["plain"].items():
        assert torch.equal(levels["untouched"][key], level)
        changed = not torch.equal(levels["enhanced"][key], level)
        assert changed == (key == "0")
    with torch.no_grad():
        expected, detections = detector(images), untouched(images)
    for mine, theirs in zip(detections, expected, strict=True):
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("stock", ["faster_rcnn", "retinanet"], indirect=True)
def test_the_target_is_the_image_itself(stock: tuple[Any, int], example: ModuleType) -> None:
    detector, scale = stock
    example.add_self_reconstruction(detector, scale).train()
    seen: dict[str, Any] = {}
    detector.backbone.self_reconstruction.register_forward_hook(
        lambda module, inputs, output: seen.update(image=inputs[1], sizes=inputs[2], output=output[1])
    )
    images, targets = batch()
    losses = detector(images, targets)
    names = TORCHVISION_LOSSES["faster_rcnn" if scale == 4 else "retinanet"]
    assert set(losses) == names | {"loss_reconstruction"}
    assert losses["loss_reconstruction"] is seen["output"].loss
    assert seen["image"].shape == (2, 3, 96, 96)
    # Their shorter side of 64 pixels is min_size already, so resizing changes nothing.
    assert seen["sizes"] == IMAGE_SIZES
    for image, given, (height, width) in zip(seen["image"], images, IMAGE_SIZES, strict=True):
        torch.testing.assert_close(image[:, :height, :width], given)
        assert not image[:, height:].any()
        assert not image[:, :, width:].any()
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in detector.backbone.self_reconstruction.parameters())
    assert detector.backbone.backbone.body.conv1.weight.grad.any()
    copied = copy.deepcopy(detector)  # nothing of a step is left behind, so that averages of weights can be kept
    assert copied.backbone.transform is copied.transform
    assert copied.state_dict().keys() == detector.state_dict().keys()


def test_the_example_trains(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    detector, history = example.train("retinanet", steps=3, min_size=64, lr=0.005)
    assert history[-1]["loss_reconstruction"] < history[0]["loss_reconstruction"]
    assert capsys.readouterr().out.count("loss_reconstruction") == 3
    with torch.no_grad():
        assert len(detector.eval()(batch()[0])) == 2
    example.main(["--model", "faster_rcnn", "--steps", "1", "--min-size", "64"])
    assert re.fullmatch(
        r"faster_rcnn\nstep 0  loss_classifier .* loss_reconstruction 0\.\d+\n", capsys.readouterr().out
    )
