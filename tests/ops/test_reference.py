"""The one op tester: every op, forward and backward, against `srtod.ops.reference` in float64 on the same inputs."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from srtod import ops
from srtod.ops import reference
from srtod.ops.surrogate import RESIZES, SURROGATES


@pytest.mark.parametrize("name", ["channel_reweighting", "dgfe"])
def test_many_images(name: str, native_layout: str, kit: Any, device: str) -> None:
    """More than some kernels take at once."""
    kit.assert_agrees(kit.case(name, kit.new_sizes(9, 12, 9, 11, 36, 44, 3), torch.float32, device, native_layout))


BEYOND = {  # batch, channels, h, w, H, W, hidden
    "channels_of_two_blocks": (1, 2100, 3, 5, 12, 20, 40),  # in channels_last, of every type
    "batch_over_the_blocks": (40, 5, 4, 6, 16, 24, 2),  # of the emulated GPU, which has six
    "groups_of_parts": (1, 2, 120, 137, 480, 548, 1),
    "map_of_the_filters_size": (2, 300, 9, 11, 9, 11, 70),
    "one_long_row": (2, 33, 1, 2051, 1, 4102, 9),
    "map_larger_on_one_axis": (2, 17, 12, 30, 40, 20, 3),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["channel_reweighting", "dgfe", "filtration"])
@pytest.mark.parametrize("size", BEYOND)
def test_sizes_beyond_one_round(
    size: str, name: str, dtype: torch.dtype, native_layout: str, kit: Any, device: str
) -> None:
    """What one block, warp or thread takes at once is not enough."""
    case = kit.case(name, kit.new_sizes(*BEYOND[size]), dtype, device, native_layout)
    if "weight1" in case.tensors:
        case.tensors["weight1"] *= 0.1  # sums over 2100 channels stay as small as those over fewer
    kit.assert_agrees(case)


def test_every_dtype_layout_and_size(
    op: str, kit: Any, sizes: Any, layout: str, dtype: torch.dtype, device: str
) -> None:
    kit.assert_agrees(kit.case(op, sizes, dtype, device, layout))
    parameters = inspect.signature(getattr(ops, op)).parameters
    if variants := {name: True for name in ("from_logits", "valid_size") if name in parameters}:
        kit.assert_agrees(kit.case(op, sizes, dtype, device, layout, **variants))


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", ["odd", "upsampled"])
@pytest.mark.parametrize("name", ["filtration", "dgfe"])
def test_every_resize_and_surrogate(
    name: str, size: str, resize: str, surrogate: str, kit: Any, dtype: torch.dtype, device: str
) -> None:
    kit.assert_agrees(
        kit.case(name, kit.sizes[size], dtype, device, "sliced", resize=resize, surrogate=surrogate, alpha=40)
    )


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("name", ["filtration", "dgfe"])
def test_every_resize_and_size(name: str, resize: str, kit: Any, sizes: Any, native_layout: str, device: str) -> None:
    kit.assert_agrees(kit.case(name, sizes, torch.float32, device, native_layout, resize=resize))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["difference_map", "reconstruction_difference"])
@pytest.mark.parametrize("from_logits", [False, True])
def test_half_reconstruction_beside_float32_image(
    name: str, from_logits: bool, half: torch.dtype, kit: Any, device: str
) -> None:
    case = kit.case(name, device=device, from_logits=from_logits)
    case.tensors["reconstruction"] = case.tensors["reconstruction"].to(half)
    kit.assert_agrees(case)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("widened", ["difference", "mlp", "threshold", "features"])
def test_dgfe_with_mixed_dtypes(widened: str, half: torch.dtype, kit: Any, native_layout: str, device: str) -> None:
    case = kit.case("dgfe", kit.sizes["odd"], half, device, native_layout)
    case.tensors["threshold"] = case.tensors["threshold"].to(half)
    for name in case.tensors:
        if name == widened or (widened == "mlp" and name.startswith(("weight", "bias"))):
            case.tensors[name] = case.tensors[name].float()
    kit.assert_agrees(case)


def test_only_the_gradients_asked_for(op: str, kit: Any, device: str) -> None:
    case = kit.case(op, device=device).require_grad()
    outputs = case.run()
    cotangents = tuple(torch.randn_like(output) for output in outputs)
    together = case.gradients(outputs, cotangents)
    for name, tensor in case.tensors.items():
        alone = kit.case(op, device=device)
        alone.options = case.options
        alone.tensors = {other: x.detach() for other, x in case.tensors.items()}
        alone.tensors[name] = tensor
        outputs = alone.run()
        wanted = [k for k, output in enumerate(outputs) if output.requires_grad]
        assert wanted
        (gradient,) = torch.autograd.grad([outputs[k] for k in wanted], tensor, [cotangents[k] for k in wanted])
        torch.testing.assert_close(gradient, together[name])


@pytest.mark.parametrize("used", [0, 1])
def test_one_of_two_results_used(used: int, kit: Any, device: str) -> None:
    case = kit.case("reconstruction_difference", device=device, valid_size=True).require_grad()
    exact = case.in_float64().require_grad()
    output, expected = case.run()[used], exact.specified()[used]
    cotangent = torch.randn_like(output)
    gradients = case.gradients((output,), (cotangent,))
    tensors = list(exact.tensors.values())
    by_reference = torch.autograd.grad(expected, tensors, cotangent.double(), materialize_grads=True)
    for name, gradient in zip(gradients, by_reference, strict=True):
        tolerance = 1e-5 * gradient.abs().max().item()
        torch.testing.assert_close(gradients[name], gradient.float(), rtol=1e-5, atol=tolerance)


def test_inplace_dgfe(kit: Any, native_layout: str, sizes: Any, dtype: torch.dtype, device: str) -> None:
    for resize in RESIZES:
        case = kit.case("dgfe", sizes, dtype, device, native_layout, resize=resize)
        (expected,) = case.run()
        features = case.tensors["features"]
        assert ops.dgfe_(**case.tensors, resize=resize) is features
        assert torch.equal(features, expected)


def test_inplace_dgfe_is_seen_by_autograd(kit: Any, device: str) -> None:
    """Overwriting what an earlier op saved for its backward pass must be an error, not a wrong gradient."""
    case = kit.case("dgfe", device=device)
    features = case.tensors["features"]
    scale = torch.ones_like(features, requires_grad=True)
    product = scale * features
    with torch.no_grad():
        ops.dgfe_(**case.tensors)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_module(surrogate: str, kit: Any, native_layout: str, device: str) -> None:
    case = kit.case("dgfe", kit.sizes["even"], device=device, layout=native_layout).require_grad()
    module = ops.DGFE(16, 4, threshold=1 / 64, surrogate=surrogate, alpha=40).to(device)
    fields = {"threshold": module.threshold, "weight1": module.fc1.weight, "bias1": module.fc1.bias}
    fields |= {"weight2": module.fc2.weight, "bias2": module.fc2.bias}
    case.tensors |= fields
    case.options = {"surrogate": surrogate, "alpha": 40}
    difference = case.tensors.pop("difference")
    output = module(case.tensors["features"], difference)
    expected = reference.dgfe(difference=difference, **case.tensors, **case.options)
    torch.testing.assert_close(output, expected)
    cotangent = torch.randn_like(output)
    expected_gradients = case.gradients((expected,), (cotangent,))
    output.backward(cotangent)
    for name, tensor in case.tensors.items():
        torch.testing.assert_close(tensor.grad, expected_gradients[name], rtol=1e-4, atol=1e-5)
    assert (module.threshold.grad != 0) == (surrogate != "none")


def test_module_in_place_only_without_gradients(kit: Any, device: str) -> None:
    case = kit.case("dgfe", device=device)
    features, difference = case.tensors["features"], case.tensors["difference"]
    module = ops.DGFE(16, 4, inplace=True).to(device)
    before = features.clone()
    recorded = module(features, difference)
    assert torch.equal(features, before)
    with torch.no_grad():
        assert module(features, difference) is features
    assert torch.equal(features, recorded)


def test_module_state() -> None:
    module = ops.DGFE(32, 8, threshold=40 / 255)
    assert {"threshold", "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"} == set(module.state_dict())
    assert module.fc1.weight.shape == (4, 32)
    with torch.no_grad():
        module.threshold.fill_(1.5)
    module.clamp_threshold_()
    assert module.threshold == 1
    fixed = ops.DGFE(32, learn_threshold=False)
    assert "threshold" in fixed.state_dict()
    assert "threshold" not in dict(fixed.named_parameters())
    assert "surrogate=sigmoid" in repr(fixed)


def test_use_reference_runs_the_reference(kit: Any, device: str) -> None:
    """The reference is differentiable twice, the compiled ops are not: so it shows which of them ran."""
    case = kit.case("dgfe", device=device).require_grad()
    with ops.use_reference():
        assert not ops.is_fused(device)
        (output,) = case.run()
        (specified,) = case.specified()
        assert torch.equal(output, specified)
        (first,) = torch.autograd.grad(output.square().sum(), case.tensors["features"], create_graph=True)
        first.square().sum().backward()
    assert case.tensors["weight1"].grad.abs().sum() > 0
    assert ops.is_fused(device)


def test_surrogates_reach_half_their_peak_at_four_grey_levels() -> None:
    u = torch.tensor([0.0, 4 / 255], dtype=torch.float64)
    for surrogate in ("sigmoid", "atan", "triangle"):
        peak, half = reference.surrogate_derivative(u, surrogate)
        assert half / peak == pytest.approx(0.5, abs=0.01), surrogate
    inside, outside = reference.surrogate_derivative(u[1] * torch.tensor([0.99, 1.01]), "rect")
    assert inside > 0
    assert outside == 0
