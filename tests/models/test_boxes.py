"""Box coding, boxes as Gaussians, receptive fields."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import _utils as det_utils

from srtod.models import BACKBONES, build_backbone
from srtod.models.boxes import BoxCoder, gaussian_kl, receptive_field_distance, receptive_fields, scale_boxes


def random_boxes(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 100
    return torch.cat((corners, corners + 1 + torch.rand(count, 2, generator=generator) * 30), dim=1)


@pytest.mark.parametrize("stds", [(1.0, 1.0, 1.0, 1.0), (0.1, 0.1, 0.2, 0.2), (0.033, 0.033, 0.067, 0.067)])
def test_coder_is_torchvisions(stds: tuple[float, ...]) -> None:
    boxes, priors = random_boxes(50), random_boxes(50, seed=1)
    theirs = det_utils.BoxCoder(weights=tuple(1 / std for std in stds))
    deltas = BoxCoder(stds).encode(boxes, priors)
    assert torch.equal(deltas, theirs.encode_single(boxes, priors))
    assert torch.equal(BoxCoder(stds).decode(deltas, priors), theirs.decode_single(deltas, priors))
    torch.testing.assert_close(BoxCoder(stds).decode(deltas, priors), boxes, rtol=1e-4, atol=1e-3)


def test_deltas_by_hand() -> None:
    prior, box = torch.tensor([0.0, 0.0, 10.0, 20.0]), torch.tensor([5.0, 0.0, 25.0, 10.0])
    expected = torch.tensor([(15 - 5) / 10 / 0.1, (5 - 10) / 20 / 0.1, math.log(2) / 0.2, math.log(0.5) / 0.2])
    torch.testing.assert_close(BoxCoder((0.1, 0.1, 0.2, 0.2)).encode(box, prior), expected)


def test_coder_broadcasts() -> None:
    deltas = torch.randn(2, 5, 3, 4)
    priors = random_boxes(5)[:, None]
    boxes = BoxCoder().decode(deltas, priors)
    assert boxes.shape == deltas.shape
    assert torch.equal(boxes[1, 4], BoxCoder().decode(deltas[1, 4], priors[4]))
    torch.testing.assert_close(BoxCoder().encode(boxes, priors), deltas, rtol=1e-3, atol=1e-3)
    assert BoxCoder().encode(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)


def test_decoding_is_clamped() -> None:
    boxes = BoxCoder((0.1, 0.1, 0.2, 0.2)).decode(torch.tensor([[0.0, 0, 1e4, 1e4]]), torch.tensor([[0.0, 0, 16, 16]]))
    torch.testing.assert_close(boxes[:, 2:] - boxes[:, :2], torch.full((1, 2), 1000.0))


def test_half_precision_is_computed_in_float32() -> None:
    deltas = torch.tensor([[0.01, 0.0, 0.0, 0.0]], dtype=torch.bfloat16)
    priors = torch.tensor([[1001.0, 33.0, 1007.0, 39.0]])
    boxes = BoxCoder().decode(deltas, priors)
    assert boxes.dtype == torch.float32
    assert torch.equal(boxes, BoxCoder().decode(deltas.float(), priors))
    assert BoxCoder().encode(priors.bfloat16(), priors).dtype == torch.float32


def test_gradient_reaches_deltas() -> None:
    deltas = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: BoxCoder().decode(x, random_boxes(3).double()), deltas)


def test_coder_errors() -> None:
    with pytest.raises(ValueError, match=re.escape("stds must be four positive numbers")):
        BoxCoder((1.0, 1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match=re.escape("priors must have shape [..., 4], got [3, 5]")):
        BoxCoder().encode(torch.zeros(3, 4), torch.zeros(3, 5))


def test_scaled_boxes_keep_their_centre_and_the_input() -> None:
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    assert torch.equal(scale_boxes(boxes, 0.5), torch.tensor([[15.0, 30.0, 25.0, 50.0]]))
    assert torch.equal(boxes, torch.tensor([[10.0, 20.0, 30.0, 60.0]]))


def test_kl_is_that_of_torch_distributions() -> None:
    objects, priors = random_boxes(7), random_boxes(9, seed=1)

    def normal(boxes: Tensor) -> torch.distributions.Distribution:
        centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        return torch.distributions.Independent(torch.distributions.Normal(centres, sides / 2), 1)

    pairs = torch.cartesian_prod(torch.arange(7), torch.arange(9))
    expected = torch.distributions.kl_divergence(normal(priors[pairs[:, 1]]), normal(objects[pairs[:, 0]])).view(7, 9)
    torch.testing.assert_close(gaussian_kl(objects, priors), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(receptive_field_distance(objects, priors), 1 / (1 + expected), rtol=1e-5, atol=1e-6)


def test_equal_boxes_have_distance_one() -> None:
    boxes = random_boxes(20)
    distance = receptive_field_distance(boxes, boxes)
    assert distance.max() <= 1
    torch.testing.assert_close(distance.diagonal(), torch.ones(20), rtol=0, atol=1e-5)


def test_kl_errors() -> None:
    with pytest.raises(ValueError, match=re.escape("priors must have shape [N, 4], got [4]")):
        gaussian_kl(random_boxes(1), torch.zeros(4))
    with pytest.raises(ValueError, match=re.escape("objects[1] must be finite with x1 < x2 and y1 < y2")):
        gaussian_kl(torch.tensor([[0.0, 0, 1, 1], [5.0, 5, 5, 6]]), random_boxes(1))


def test_receptive_fields_of_resnet50() -> None:
    layers = build_backbone("resnet50").layers
    assert receptive_fields(layers) == (35, 91, 267, 427, 555)
    assert receptive_fields(layers, levels=6)[1:] == (91, 267, 427, 555, 811)
    assert receptive_fields(layers, levels=2) == (35, 91)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "mobilenet_v2"])
def test_receptive_fields_are_what_gradients_reach(name: str) -> None:
    """The pixels that one place of each map depends on, of a backbone whose weights are positive."""
    assert name in BACKBONES
    backbone = build_backbone(name).double().eval()
    for module in list(backbone.modules()):
        for child_name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):  # passes only the gradient of one of its pixels
                setattr(module, child_name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
            elif isinstance(child, (nn.ReLU, nn.ReLU6, nn.BatchNorm2d)):
                setattr(module, child_name, nn.Identity())
            elif isinstance(child, nn.Conv2d):
                nn.init.constant_(child.weight, 1 / child.weight[0].numel())
    expected = receptive_fields(backbone.layers, levels=4)
    image = torch.zeros(1, 3, 32, 1024, dtype=torch.float64, requires_grad=True)
    for features, field in zip(backbone(image).values(), expected, strict=True):
        (gradient,) = torch.autograd.grad(features[0, 0, 0, features.shape[3] // 2], image, retain_graph=True)
        reached = gradient[0].abs().sum(dim=(0, 1)).nonzero()
        assert int(reached[-1] - reached[0]) + 1 == field


def test_dilation_and_errors() -> None:
    stem, stage = (
        nn.Conv2d(3, 3, 3, stride=2),
        nn.Sequential(nn.Conv2d(3, 3, 3, dilation=2), nn.ReLU(), nn.AvgPool2d(2)),
    )
    assert receptive_fields([stem, stage], levels=1) == (1 + 2 + 2 * 2 * 2 + 1 * 2,)
    with pytest.raises(ValueError, match="at least one stage"):
        receptive_fields([stem])
    with pytest.raises(ValueError, match="levels must be at least 1"):
        receptive_fields([stem, stage], levels=0)
