"""Gradients without the reference: finite differences, the surrogate contract, no second derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck

from srtod import ops
from srtod.ops import reference
from srtod.ops.surrogate import DEFAULT_ALPHA, RESIZES, SURROGATES


def distinct(*shape: int, device: str) -> Tensor:
    """Values in (0, 1), no two within 1 / (2 numel): maxima stay where they are under small steps."""
    count = math.prod(shape)
    return ((torch.randperm(count) + 0.25 + 0.5 * torch.rand(count)) / count).reshape(shape).double().to(device)


def smooth_mlp(channels: int, hidden: int, device: str) -> list[Tensor]:
    """Weights and biases whose hidden values are away from the ReLU's kink, some above and some below."""
    signs = torch.tensor([1.0, -1.0, 1.0, 1.0])[:hidden, None]
    tensors = (
        (0.1 + torch.rand(hidden, channels)) * signs,
        signs[:, 0] * 0.5,
        torch.randn(channels, hidden),
        torch.randn(channels),
    )
    return [t.double().to(device) for t in tensors]


@pytest.fixture(params=["contiguous", "channels_last", "transposed", "sliced"])
def layout(request: pytest.FixtureRequest) -> str:
    """As in conftest.py, but "expanded": gradcheck steps through memory, so elements must not share it."""
    return str(request.param)


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().requires_grad_() for t in tensors]


@pytest.mark.parametrize("from_logits", [False, True])
def test_gradcheck_of_difference_maps(from_logits: bool, kit: Any, layout: str, device: str) -> None:
    image = torch.rand(2, 3, 4, 5).double().to(device)
    sign = torch.randint(0, 2, image.shape).to(image) * 2 - 1
    rebuilt = (image * 0.5 + 0.25 + sign * 0.2).clamp(0.02, 0.98)
    rebuilt = torch.where((rebuilt - image).abs() < 0.01, image + 0.02, rebuilt)  # away from the kink of |.|
    reconstruction = torch.logit(rebuilt, eps=1e-6) if from_logits else rebuilt
    inputs = leaves(kit.lay_out(reconstruction, layout), kit.lay_out(image, layout))
    valid_size = torch.tensor([[4, 3], [2, 5]], device=device)
    assert gradcheck(lambda r, i: ops.difference_map(r, i, from_logits=from_logits), inputs)
    assert gradcheck(
        lambda r, i: ops.reconstruction_difference(r, i, from_logits=from_logits, valid_size=valid_size), inputs
    )


def test_gradcheck_of_channel_reweighting(kit: Any, layout: str, device: str) -> None:
    features = kit.lay_out(distinct(2, 6, 3, 4, device=device), layout)
    assert gradcheck(ops.channel_reweighting, leaves(features, *smooth_mlp(6, 4, device)))


@pytest.mark.parametrize("resize", RESIZES)
def test_gradcheck_of_dgfe_behind_its_step(resize: str, kit: Any, layout: str, device: str) -> None:
    features = kit.lay_out(distinct(2, 6, 3, 4, device=device), layout)
    difference = torch.rand(2, 1, 12, 16, device=device).double()
    threshold = torch.tensor(0.5, device=device)
    inputs = leaves(features, *smooth_mlp(6, 4, device))
    assert gradcheck(lambda x, *mlp: ops.dgfe(x, difference, threshold, *mlp, resize=resize), inputs)


def smooth_filtration(d: Tensor, t: Tensor, size: tuple[int, int], resize: str, surrogate: str, alpha: float) -> Tensor:
    """The filter with the surrogate's primitive instead of the step, from PyTorch's own resizes."""

    def primitive(x: Tensor) -> Tensor:
        return reference.primitive(x - t, surrogate, alpha)

    if resize == "nearest":
        return primitive(F.interpolate(d, size=size, mode="nearest")) + 1
    if resize == "max":
        return primitive(F.adaptive_max_pool2d(d, size)) + 1
    if resize == "area":
        return F.adaptive_avg_pool2d(primitive(d), size) + 1
    return F.interpolate(primitive(d), size=size, mode="bilinear", align_corners=False) + 1


def finite_differences(function: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-7) -> Tensor:
    """Central differences of a scalar function, element by element."""
    gradient = torch.zeros_like(x)
    for k in range(x.numel()):
        offset = torch.zeros_like(x)
        offset.view(-1)[k] = step
        gradient.view(-1)[k] = (function(x + offset) - function(x - offset)) / (2 * step)
    return gradient


@pytest.mark.parametrize("size", [(3, 4), (5, 9)])
@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_surrogate_contract(surrogate: str, resize: str, size: tuple[int, int], device: str) -> None:
    """Forward: exactly the step. Backward: the finite difference of the smooth primitive."""
    alpha = DEFAULT_ALPHA[surrogate]
    difference = distinct(1, 1, 6, 7, device=device) * 0.08
    threshold = torch.tensor(0.04, dtype=torch.float64, device=device)
    cotangent = torch.randn(1, 1, *size, device=device, dtype=torch.float64)

    def primitive_loss(d: Tensor, t: Tensor) -> Tensor:
        return (smooth_filtration(d, t, size, resize, surrogate, alpha) * cotangent).sum()

    d, t = leaves(difference, threshold)
    filter_ = ops.filtration(d, t, size, resize=resize, surrogate=surrogate, difference_gradient=True)
    assert torch.equal(filter_, ops.filtration(d, t, size, resize=resize, surrogate="none"))
    filter_.backward(cotangent)
    by_difference = finite_differences(lambda x: primitive_loss(x, threshold), difference)
    by_threshold = finite_differences(lambda x: primitive_loss(difference, x), threshold)
    torch.testing.assert_close(d.grad, by_difference, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(t.grad, by_threshold, rtol=1e-5, atol=1e-5)
    assert (by_threshold.abs() > 1e-3) == (surrogate != "none")


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("name", ["filtration", "dgfe"])
def test_the_difference_gets_no_gradient_by_default(
    name: str, resize: str, surrogate: str, kit: Any, native_layout: str, device: str
) -> None:
    """Compiled and as reference; all other gradients are to the bit those beside the difference's."""
    options = {"resize": resize, "surrogate": surrogate, "alpha": 5.0}  # wide enough to reach every difference
    case = kit.case(name, kit.sizes["odd"], device=device, layout=native_layout, **options)
    case.require_grad()
    del case.options["difference_gradient"]
    for function in (getattr(ops, name), getattr(reference, name)):
        found = []
        for options in ({}, {"difference_gradient": False}, {"difference_gradient": True}):
            output = function(**case.tensors, **case.options, **options)
            cotangent = torch.linspace(-1, 2, output.numel(), device=device).reshape(output.shape)
            gradients = torch.autograd.grad(output, list(case.tensors.values()), cotangent, allow_unused=True)
            found.append(dict(zip(case.tensors, gradients, strict=True)))
        by_default, without, with_it = found
        assert by_default.pop("difference") is None
        assert without.pop("difference") is None
        assert with_it.pop("difference").any() == (surrogate != "none")
        assert by_default["threshold"].any() == (surrogate != "none")
        for of, gradient in with_it.items():
            assert torch.equal(by_default[of], gradient), of
            assert torch.equal(without[of], gradient), of


@pytest.mark.parametrize("resize", RESIZES)
def test_threshold_gradient_keeps_its_precision_over_many_pixels(resize: str, device: str) -> None:
    """A sum over 262144 equal terms: one running float32 sum would be off by 0.25 %."""
    threshold = torch.tensor(0.5, device=device, requires_grad=True)
    filter_ = ops.filtration(
        torch.rand(1, 1, 512, 512, device=device), threshold, (512, 512), resize=resize, surrogate="ste"
    )
    filter_.backward(torch.full_like(filter_, 0.1))
    assert threshold.grad.item() == pytest.approx(-0.1 * 512 * 512, rel=2e-5)


def test_second_derivatives_are_refused(op: str, kit: Any, device: str) -> None:
    case = kit.case(op, device=device).require_grad()
    first = torch.autograd.grad(case.run()[0].sum(), list(case.tensors.values()), create_graph=True)
    with pytest.raises(RuntimeError, match=r"srtod::_\w+_backward cannot be differentiated.*first derivatives only"):
        torch.autograd.grad(sum(g.sum() for g in first), list(case.tensors.values()))


def test_first_of_equal_maxima_gets_the_gradient(kit: Any, native_layout: str, dtype: torch.dtype, device: str) -> None:
    """With integer features nearly every channel has many maxima; longer than every tile and block of the kernels."""
    for shape in ((2, 3, 9, 7), (1, 2, 70, 75), (1, 64, 40, 30)):
        features = kit.lay_out(torch.randint(-2, 3, shape).to(device, dtype), native_layout)
        sizes = kit.new_sizes(*shape, *shape[2:], 2)
        case = kit.case("channel_reweighting", sizes, dtype, device)
        case.tensors["features"] = features
        case.tensors["weight1"].abs_()
        case.tensors["bias1"].fill_(1)  # so that the ReLU lets the maximum's gradient pass
        first = [plane.flatten().tolist().index(plane.max().item()) for plane in features.flatten(0, 1)]
        argmax = torch.ops.srtod.channel_reweighting(*case.tensors.values())[3]
        assert argmax.flatten().tolist() == first
        (gradient,) = torch.autograd.grad(case.require_grad().run()[0].sum(), case.tensors["features"])
        planes = gradient.flatten(2).flatten(0, 1)
        others = torch.ones_like(planes, dtype=torch.bool)
        others[torch.arange(len(first)), first] = False
        for plane, other in zip(planes, others, strict=True):
            assert plane[other].unique().numel() <= 1  # only the average's share, the same for each pixel
        assert (planes[~others] != planes[:, -1]).all()


def test_first_of_equal_differences_gets_the_gradient(dtype: torch.dtype, device: str) -> None:
    difference = torch.full((2, 1, 8, 9), 0.03125, device=device, dtype=dtype, requires_grad=True)
    threshold = torch.tensor(0.03, device=device)
    options = {"resize": "max", "surrogate": "ste", "difference_gradient": True}
    ops.filtration(difference, threshold, (4, 3), **options).sum().backward()
    expected = torch.zeros_like(difference)
    expected[:, :, ::2, ::3] = 1
    assert torch.equal(difference.grad, expected)
