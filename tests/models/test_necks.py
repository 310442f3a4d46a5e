"""Necks: levels, neutral starts, feedback, gradients, one graph under torch.compile."""

from collections import OrderedDict
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from srtod.models import build_backbone
from srtod.models.backbones import Backbone
from srtod.models.necks import RecursiveFeaturePyramid, RetinaFPN

CHANNELS = (64, 128, 256, 512)  # of ResNet-18


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    return build_backbone("resnet18", norm="frozen_batch", output_image=True)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def maps(*channels: int) -> OrderedDict[str, Tensor]:
    return OrderedDict((f"c{i + 2}", torch.randn(1, c, 32 >> i, 48 >> i)) for i, c in enumerate(channels))


@pytest.mark.parametrize("p6_from", ["c5", "p5"])
@pytest.mark.parametrize("c5", [16, 40])  # 16: as many channels as the pyramid has
def test_one_stage_pyramid(p6_from: str, c5: int) -> None:
    neck = RetinaFPN((8, 12, 24, c5), channels=16, p6_from=p6_from)
    features = maps(8, 12, 24, c5) | {"image": torch.rand(1, 3, 128, 192)}
    levels = neck(features)
    assert {name: tuple(level.shape[1:]) for name, level in levels.items()} == {
        "p3": (16, 16, 24),
        "p4": (16, 8, 12),
        "p5": (16, 4, 6),
        "p6": (16, 2, 3),
        "p7": (16, 1, 2),
    }
    assert list(levels) == ["p3", "p4", "p5", "p6", "p7"]
    source = features["c5"] if p6_from == "c5" else levels["p5"]
    torch.testing.assert_close(levels["p6"], neck.extra_blocks.p6(source))
    sum(level.sum() for level in levels.values()).backward()
    assert all(parameter.grad is not None for parameter in neck.parameters())


def test_one_stage_pyramid_needs_no_c2() -> None:
    torch.manual_seed(0)
    neck = RetinaFPN((12, 24, 40), 16)
    torch.manual_seed(0)
    other = RetinaFPN((8, 12, 24, 40), 16)
    features = maps(8, 12, 24, 40)
    for name, level in neck(features).items():
        assert torch.equal(level, other(features)[name])


def test_one_stage_pyramid_options() -> None:
    with pytest.raises(ValueError, match=r"those of C2 to C5, or of C3 to C5, got \[8, 12\]"):
        RetinaFPN((8, 12), 16)
    with pytest.raises(ValueError, match="unknown p6_from 'c4'; choose c5 or p5"):
        RetinaFPN((8, 12, 24), 16, p6_from="c4")


@pytest.mark.parametrize("steps", [2, 3])
def test_recursion_starts_as_the_plain_pyramid(backbone: Backbone, images: Tensor, steps: int) -> None:
    neck = RecursiveFeaturePyramid(deepcopy(backbone), CHANNELS, 16, steps=steps)
    assert len(neck.backbones) == steps - 1
    features = backbone(images)
    levels = neck(features)
    del features["image"]
    plain = neck.fpn(features)
    assert list(levels) == ["p2", "p3", "p4", "p5", "p6"]
    for name, level in levels.items():
        torch.testing.assert_close(level, plain[name], atol=1e-5, rtol=1e-5)


def test_recursion_starts_as_the_mean_of_both_backbones(backbone: Backbone, images: Tensor) -> None:
    other = build_backbone("resnet18", norm="frozen_batch")
    neck = RecursiveFeaturePyramid(other, CHANNELS, 16)
    features = backbone(images)
    levels = neck(features)
    del features["image"]
    first, second = neck.fpn(features), neck.fpn(other(images))
    for name, level in levels.items():
        torch.testing.assert_close(level, (first[name] + second[name]) / 2, atol=1e-4, rtol=1e-4)


def test_gate_chooses_between_the_steps(backbone: Backbone, images: Tensor) -> None:
    other = build_backbone("resnet18", norm="frozen_batch")
    neck = RecursiveFeaturePyramid(other, CHANNELS, 16)
    features = backbone(images)
    for bias, source in ((100.0, other(images)), (-100.0, OrderedDict(list(features.items())[:4]))):
        with torch.no_grad():
            neck.gate.bias.fill_(bias)
        for name, level in neck.fpn(source).items():
            torch.testing.assert_close(neck(features)[name], level, atol=1e-5, rtol=1e-5)


def test_gradients_reach_all_parts(backbone: Backbone, images: Tensor) -> None:
    first = deepcopy(backbone)
    neck = RecursiveFeaturePyramid(build_backbone("resnet18", norm="frozen_batch"), CHANNELS, 16, steps=3)
    for parameter in (*neck.connections.parameters(), *neck.gate.parameters()):
        nn.init.normal_(parameter, std=0.1)
    sum(level.square().sum() for level in neck(first(images)).values()).backward()
    for module in (first, neck):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name


def test_zero_initialised_parts_learn_from_the_start(backbone: Backbone, images: Tensor) -> None:
    neck = RecursiveFeaturePyramid(build_backbone("resnet18", norm="frozen_batch"), CHANNELS, 16)
    sum(level.square().sum() for level in neck(backbone(images)).values()).backward()
    for connection in neck.connections[0]:
        assert connection.weight.grad.any()
    assert neck.gate.weight.grad.any()


def test_recursion_in_autocast(images: Tensor) -> None:
    first = build_backbone("resnet18", sac=True, output_image=True, norm="group")
    neck = RecursiveFeaturePyramid(build_backbone("resnet18", sac=True, norm="group"), CHANNELS, 16)
    with torch.autocast("cpu", torch.bfloat16):
        levels = neck(first(images))
    sum(level.float().square().sum() for level in levels.values()).backward()
    assert all(level.isfinite().all() for level in levels.values())
    for parameter in (*first.parameters(), *neck.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


def test_the_necks_backbone_stays_frozen_where_it_is() -> None:
    second = build_backbone("resnet18", trainable_layers=3, norm="frozen_batch")
    neck = RecursiveFeaturePyramid(second, CHANNELS, 16, steps=3).train()
    for copy in neck.backbones:
        assert not any(parameter.requires_grad for parameter in copy.layers[:2].parameters())
        assert not any(m.training for m in copy.modules() if isinstance(m, nn.BatchNorm2d))
    state = neck.state_dict()
    neck.load_state_dict(state)
    assert "backbones.1.layers.4.0.conv1.weight" in state


def test_recursion_options(backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="steps counts the first step and must be at least 2, got 1"):
        RecursiveFeaturePyramid(backbone, CHANNELS, 16, steps=1)
    with pytest.raises(ValueError, match="needs a ResNet"):
        RecursiveFeaturePyramid(build_backbone("mobilenet_v2"), (24, 32, 96, 320), 16)
    with pytest.raises(ValueError, match=r"same channels, got \(1, 2, 3, 4\) and \(64, 128, 256, 512\)"):
        RecursiveFeaturePyramid(backbone, (1, 2, 3, 4), 16)
    with pytest.raises(ValueError, match="divisible"):
        RecursiveFeaturePyramid(backbone, CHANNELS, 18)
    neck = RecursiveFeaturePyramid(backbone, CHANNELS, 16)
    with pytest.raises(ValueError, match="build the backbone with output_image=True"):
        neck(maps(*CHANNELS))


def one_block_a_stage(backbone: Backbone) -> Backbone:
    for index in range(1, 5):
        backbone.layers[index] = backbone.layers[index][:1]
    return backbone


@pytest.mark.slow
def test_recursion_compiles_in_one_graph() -> None:
    torch.manual_seed(0)
    first = one_block_a_stage(build_backbone("resnet18", output_image=True))
    neck = RecursiveFeaturePyramid(one_block_a_stage(build_backbone("resnet18", sac=True)), CHANNELS, 8)
    model = nn.Sequential(first, neck).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    image = torch.rand(1, 3, 64, 64)
    levels = compiled(image)
    for name, level in model(image).items():
        torch.testing.assert_close(levels[name], level, atol=1e-4, rtol=1e-4)
