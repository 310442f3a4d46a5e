"""NaN, infinities, zeros, subnormal and huge numbers and ties, forward and backward, as `srtod.ops` promises."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from srtod import ops
from srtod.ops.surrogate import RESIZES, SURROGATES

TIE = 1 / 64  # the threshold of `kit.case`
SPECIAL = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e30, -1e30, 1e-40, -1e-40, TIE, math.nextafter(TIE, 1))
COTANGENT = "cotangent"


@st.composite
def options_of(draw: Any, op: str) -> dict[str, Any]:
    if op in ("filtration", "dgfe"):
        return {
            "resize": draw(st.sampled_from(RESIZES)),
            "surrogate": draw(st.sampled_from(SURROGATES)),
            "alpha": 40,
            "difference_gradient": True,
        }
    if op == "channel_reweighting":
        return {}
    valid = {"valid_size": draw(st.booleans())} if op == "reconstruction_difference" else {}
    return {"from_logits": draw(st.booleans()), **{name: True for name, value in valid.items() if value}}


@st.composite
def sizes_of(draw: Any, kit: Any) -> Any:
    """Small ones; a map that is smaller, larger or as large as the features."""
    h, w = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    height, width = draw(st.sampled_from([(h, w), (3 * h, 3 * w), (4 * h, 4 * w), (h + 2, max(1, w - 2))]))
    return kit.new_sizes(draw(st.integers(1, 2)), draw(st.sampled_from([1, 3, 4])), h, w, height, width, 2)


def classes(x: Tensor) -> Tensor:
    """0 for a number, 1 for NaN, 2 and 3 for the infinities."""
    return x.isnan() * 1 + x.isposinf() * 2 + x.isneginf() * 3


def assert_alike(actual: Tensor, specified: Tensor, exact: Tensor, what: str) -> None:
    """NaN and infinities are where the reference has them, and the other values are near its values.

    But for elements in which a float32 overflows and a float64 does not: with infinities beside it, the order of the
    terms then decides.
    """
    assert actual.dtype == specified.dtype
    actual, specified, exact = actual.double(), specified.double(), exact.to(specified.dtype).double()
    settled = classes(specified) == classes(exact)
    assert torch.equal(classes(actual)[settled], classes(specified)[settled]), f"{what}: {actual} for {specified}"
    numbers = settled & exact.isfinite()
    actual, specified, exact = actual[numbers], specified[numbers], exact[numbers]
    if exact.numel():
        tolerance = 1e-2 * exact.abs() + 1e-5 * exact.abs().max() + 2 * (specified - exact).abs().max() + 1e-7
        assert ((actual - exact).abs() <= tolerance).all(), f"{what}: {actual} for {exact}"


def check(op: str, draw: Any, kit: Any, device: str) -> None:
    options = draw(options_of(op))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    layout = draw(st.sampled_from(["contiguous", "channels_last", "sliced", "expanded"]))
    torch.manual_seed(draw(st.integers(0, 9)))
    case = kit.case(op, draw(sizes_of(kit)), dtype, device, layout, **options)
    cotangents = [torch.randn_like(x, device="cpu").to(x.device) for x in case.run()]
    places = [*case.tensors, COTANGENT]
    for name in draw(st.lists(st.sampled_from(places), min_size=1, max_size=3)):
        x = draw(st.sampled_from(cotangents)) if name == COTANGENT else case.tensors[name]
        x[tuple(draw(st.integers(0, size - 1)) for size in x.shape)] = draw(st.sampled_from(SPECIAL))
    inputs = [*case.tensors.values(), *cotangents]
    if sum(int((x.double().abs() > 1e20).sum() - x.isinf().sum()) for x in inputs) > 1:
        return  # two huge values cancel, or not, by the order of the terms
    case.require_grad()
    exact = case.in_float64().require_grad()
    ours, specified, float64 = case.run(), case.specified(), exact.specified()
    for k, output in enumerate(ours):
        assert_alike(output, specified[k], float64[k], f"output {k}")
    gradients = case.gradients(ours, tuple(cotangents))
    expected = case.gradients(specified, tuple(cotangents))
    expected64 = exact.gradients(float64, tuple(x.double() for x in cotangents))
    for name, gradient in gradients.items():
        assert_alike(gradient, expected[name], expected64[name], f"gradient of {name}")


def test_special_values_spread_as_specified(op: str, kit: Any, device: str) -> None:
    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(st.data())
    def search(data: Any) -> None:
        check(op, data.draw, kit, device)

    search()


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_the_high_frequencies_of_one_image_depend_on_all_its_pixels_and_no_other(value: float) -> None:
    images = torch.rand(2, 2, 3, 6, 7).unbind()
    results = []
    for x in (0.5, value):
        reconstruction, image = (each.clone() for each in images)
        image[0, 1, 2, 3] = x
        leaves = (reconstruction.requires_grad_(), image.requires_grad_())
        difference = ops.high_frequency_difference_map(*leaves, cutoff=0.2)
        results.append((difference, *torch.autograd.grad(difference.sum(), leaves)))
    for ordinary, special in zip(*results, strict=True):
        assert torch.equal(special[1], ordinary[1])
        assert special[0].isfinite().all() if value == 1e30 else special[0].isnan().any()
    assert value == 1e30 or results[1][0][0].isnan().all()
