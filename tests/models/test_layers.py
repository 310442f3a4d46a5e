"""Layers of DetectoRS: function kept from plain convolutions, neutral starts, gradients."""

import math
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from srtod.models.layers import ASPP, ConvAWS2d, SAConv2d


def plain_conv(*args: int, **options: int) -> nn.Conv2d:
    """A convolution whose output channels have means and scales of their own, as those of trained networks."""
    conv = nn.Conv2d(*args, **options)
    with torch.no_grad():
        conv.weight.mul_(torch.rand(len(conv.weight), 1, 1, 1) * 3 + 0.5).add_(torch.randn(len(conv.weight), 1, 1, 1))
    return conv


def randomize(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 2, "dilation": 2}, {"groups": 2, "bias": False}])
def test_aws_keeps_a_plain_convolutions_function(options: dict[str, int]) -> None:
    conv = plain_conv(4, 6, 3, **options)
    x = torch.randn(2, 4, 9, 11)
    made = ConvAWS2d.from_conv(conv)
    loaded = ConvAWS2d(4, 6, 3, **options)  # type: ignore[arg-type]
    loaded.gamma.fill_(5)
    assert not loaded.load_state_dict(conv.state_dict()).missing_keys
    for layer in (made, loaded):
        assert torch.equal(layer.weight, conv.weight)
        torch.testing.assert_close(layer.standardized_weight(), conv.weight, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(layer(x), conv(x), atol=1e-5, rtol=1e-5)


def test_aws_standardises_a_changed_weight() -> None:
    layer = ConvAWS2d.from_conv(plain_conv(3, 4, 3))
    mean, std = layer.standardized_weight().mean((1, 2, 3)), layer.standardized_weight().std((1, 2, 3), correction=0)
    with torch.no_grad():
        layer.weight.mul_(7).add_(2)
    weight = layer.standardized_weight()
    torch.testing.assert_close(weight.mean((1, 2, 3)), mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(weight.std((1, 2, 3), correction=0), std, atol=1e-5, rtol=1e-2)  # eps, and 49 times it


def test_aws_by_hand() -> None:
    """Mean 2.5; the squares of the distances from it sum to 5, and the unbiased variance divides by 3."""
    layer = ConvAWS2d(1, 1, 2)
    assert layer.load_state_dict({"weight": torch.tensor([[[[1.0, 2], [3, 4]]]]), "bias": torch.zeros(1)})
    std = math.sqrt(5 / 3 + 1e-5)
    torch.testing.assert_close(layer.gamma.item(), std)
    torch.testing.assert_close(layer.beta.item(), 2.5)
    layer.gamma.fill_(2)
    layer.beta.fill_(-1)
    expected = [2 * distance / std - 1 for distance in (-1.5, -0.5, 0.5, 1.5)]
    torch.testing.assert_close(layer.standardized_weight().flatten(), torch.tensor(expected))


def test_aws_of_a_single_weight_keeps_it() -> None:
    conv = plain_conv(3, 3, 1, groups=3)
    torch.testing.assert_close(ConvAWS2d.from_conv(conv).standardized_weight(), conv.weight)


def test_aws_state_survives_a_round_trip() -> None:
    layer = ConvAWS2d.from_conv(plain_conv(3, 4, 3))
    randomize(layer)  # gamma and beta are no longer the weight's own
    state = deepcopy(layer.state_dict())
    other = ConvAWS2d(3, 4, 3)
    other.load_state_dict(state)
    assert torch.equal(other.gamma, layer.gamma)
    assert torch.equal(other.standardized_weight(), layer.standardized_weight())
    assert not any(parameter is buffer for parameter in layer.parameters() for buffer in layer.buffers())
    del state["gamma"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"gamma"'):
        other.load_state_dict(state)


def test_a_weight_that_does_not_fit() -> None:
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        ConvAWS2d(3, 4, 3).load_state_dict(nn.Linear(3, 4).state_dict())


def test_plain_state_is_left_as_it_was() -> None:
    state = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)).state_dict()
    nn.Sequential(SAConv2d(3, 4, 3, padding=1)).load_state_dict(state)
    assert list(state) == ["0.weight", "0.bias"]


def test_aws_loads_by_assignment_to_meta() -> None:
    conv = plain_conv(3, 4, 3, padding=1)
    for layer_class in (ConvAWS2d, SAConv2d):
        with torch.device("meta"):
            layer = layer_class(3, 4, 3, padding=1)
        layer.load_state_dict(conv.state_dict(), assign=True)
        x = torch.randn(1, 3, 6, 6)
        torch.testing.assert_close(layer(x), conv(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("deformable", [False, True])
@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2, "padding": 2, "dilation": 2}, {"kernel_size": 1}])
def test_sac_keeps_a_plain_convolutions_function(deformable: bool, options: dict[str, int]) -> None:
    conv = plain_conv(4, 6, **({"kernel_size": 3} | options))
    made = SAConv2d.from_conv(conv, deformable=deformable)
    loaded = SAConv2d(4, 6, **({"kernel_size": 3} | options), deformable=deformable)  # type: ignore[arg-type]
    randomize(loaded)
    loaded.load_state_dict(conv.state_dict())
    for size in ((9, 12), (2, 3), (1, 1)):
        x = torch.randn(2, 4, *size)
        for layer in (made, loaded):
            torch.testing.assert_close(layer(x), conv(x), atol=1e-5, rtol=1e-5)


def test_sac_mixes_two_dilations() -> None:
    layer = SAConv2d(3, 5, 3, padding=1, deformable=False)
    randomize(layer)
    with torch.no_grad():
        for context in (layer.pre_context, layer.post_context):
            nn.init.zeros_(context.weight)
            nn.init.zeros_(context.bias)
        nn.init.zeros_(layer.switch.weight)
        layer.switch.bias.fill_(0.25)
    x = torch.randn(2, 3, 10, 10)
    near = F.conv2d(x, layer.standardized_weight(), layer.bias, padding=1)
    far = F.conv2d(x, layer.standardized_weight() + layer.weight_difference, layer.bias, padding=3, dilation=3)
    torch.testing.assert_close(layer(x), 0.25 * near + 0.75 * far, atol=1e-5, rtol=1e-5)


def test_sac_switch_and_contexts() -> None:
    layer = SAConv2d(2, 1, 1, deformable=False)
    with torch.no_grad():
        layer.weight_difference.fill_(1)  # what the switch leaves to the second convolution shows
        layer.switch.weight.fill_(0.5)
        layer.switch.bias.zero_()
        layer.pre_context.bias.fill_(0.5)
        layer.post_context.weight.fill_(1)
    x = torch.randn(1, 2, 8, 8)
    inner = x + 0.5
    switch = 0.5 * inner.sum(1, keepdim=True)
    switch = F.pad(switch, [2] * 4, "reflect").unfold(2, 5, 1).unfold(3, 5, 1).mean((-1, -2))
    weight = layer.standardized_weight()
    near, far = F.conv2d(inner, weight, layer.bias), F.conv2d(inner, weight + 1, layer.bias)
    expected = switch * near + (1 - switch) * far
    expected = expected + expected.mean((2, 3), keepdim=True)
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_deformable_sac_is_plain_at_zero_offsets(groups: int) -> None:
    plain = SAConv2d(4, 6, 3, stride=2, padding=1, groups=groups, deformable=False)
    deformable = SAConv2d(4, 6, 3, stride=2, padding=1, groups=groups)
    randomize(plain)
    assert deformable.load_state_dict(plain.state_dict(), strict=False).missing_keys == [
        "offset.weight",
        "offset.bias",
        "atrous_offset.weight",
        "atrous_offset.bias",
    ]
    x = torch.randn(2, 4, 9, 7)
    torch.testing.assert_close(deformable(x), plain(x), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        deformable.atrous_offset.bias.fill_(0.5)
    assert not torch.allclose(deformable(x), plain(x), atol=1e-3)


@pytest.mark.parametrize("deformable", [False, True])
def test_gradients_reach_everything(deformable: bool) -> None:
    layer = SAConv2d(4, 6, 3, padding=1, deformable=deformable)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    layer(x).square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.any()
    assert layer.switch.weight.grad is not None
    assert layer.switch.weight.grad.any()  # the second convolution follows as soon as the switch has left 1
    randomize(layer)
    layer.zero_grad()
    layer(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.any()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_sac_in_autocast() -> None:
    layer = SAConv2d(4, 6, 3, padding=1)
    x = torch.randn(1, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.float().sum().backward()
    torch.testing.assert_close(y.float(), layer(x), atol=0.05, rtol=0.05)


def test_sac_pads_so_that_its_parts_fit() -> None:
    for options in ({"padding": 0}, {"padding": 2}, {"padding": 1, "dilation": 2}):
        with pytest.raises(ValueError, match=r"SAConv2d needs an odd kernel_size and padding = dilation"):
            SAConv2d(3, 4, 3, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="odd kernel_size"):
        SAConv2d(3, 4, 2, padding=1)


@pytest.mark.parametrize("options", [{"padding_mode": "reflect"}, {"padding": "same"}])
def test_convolutions_that_cannot_be_replaced(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="a number as padding and padding_mode='zeros'"):
        ConvAWS2d.from_conv(nn.Conv2d(3, 4, 3, **options))  # type: ignore[arg-type]


def test_aspp() -> None:
    aspp = ASPP(6, 8)
    x = torch.randn(2, 6, 7, 9)
    y = aspp(x)
    assert y.shape == (2, 8, 7, 9)
    assert [tuple(branch.kernel_size) for branch in aspp.branches] == [(1, 1), (3, 3), (3, 3), (1, 1)]
    torch.testing.assert_close(y[:, :2], aspp.branches[0](x).relu())
    torch.testing.assert_close(y[:, 4:6], aspp.branches[2](x).relu())
    assert (y[:, 6:] == y[:, 6:, :1, :1]).all()  # the last branch knows the mean alone
    y.square().sum().backward()
    assert all(parameter.grad is not None for parameter in aspp.parameters())
    assert ASPP(6, 9, dilations=(1, 2, 1))(x).shape == (2, 9, 7, 9)
    with pytest.raises(ValueError, match="divisible by the number of branches, got 10 channels"):
        ASPP(6, 10)


@pytest.mark.parametrize("deformable", [False, True])
def test_compiles_in_one_graph(deformable: bool) -> None:
    layer = nn.Sequential(SAConv2d(3, 4, 3, padding=1, deformable=deformable), ConvAWS2d(4, 4, 1), ASPP(4, 4))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
