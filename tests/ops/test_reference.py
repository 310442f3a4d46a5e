"""The one op tester: every op, forward and backward, against `srtod.ops.reference` in float64 on the same inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from srtod import ops
from srtod.ops import reference
from srtod.ops.surrogate import RESIZES, SURROGATES

CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "difference_map": ("difference_map", {}),
    "difference_map_logits": ("difference_map", {"from_logits": True}),
    "reconstruction_difference": ("reconstruction_difference", {}),
    "reconstruction_difference_logits_valid": ("reconstruction_difference", {"from_logits": True, "valid_size": True}),
    "reconstruction_tail": ("reconstruction_tail", {}),
    "reconstruction_tail_valid": ("reconstruction_tail", {"valid_size": True}),
    "filtration": ("filtration", {}),
    "channel_reweighting": ("channel_reweighting", {}),
    "dgfe": ("dgfe", {}),
    "dgfe_from_reconstruction": ("dgfe_from_reconstruction", {}),
    "dgfe_from_reconstruction_logits_valid": ("dgfe_from_reconstruction", {"from_logits": True, "valid_size": True}),
}


@pytest.mark.parametrize("op", ["channel_reweighting", "dgfe", "dgfe_from_reconstruction"])
def test_many_images(op: str, native_layout: str, kit: Any, device: str) -> None:
    """More than some kernels take at once."""
    kit.assert_agrees(kit.case(op, kit.new_sizes(9, 12, 9, 11, 36, 44, 3), torch.float32, device, native_layout))


@pytest.mark.parametrize("call", CALLS)
def test_every_dtype_layout_and_size(
    call: str, kit: Any, sizes: Any, layout: str, dtype: torch.dtype, device: str
) -> None:
    op, options = CALLS[call]
    kit.assert_agrees(kit.case(op, sizes, dtype, device, layout, **options))


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", ["odd", "upsampled"])
@pytest.mark.parametrize("op", ["filtration", "dgfe", "dgfe_from_reconstruction"])
def test_every_resize_and_surrogate(
    op: str, size: str, resize: str, surrogate: str, kit: Any, dtype: torch.dtype, device: str
) -> None:
    kit.assert_agrees(
        kit.case(op, kit.sizes[size], dtype, device, "sliced", resize=resize, surrogate=surrogate, alpha=40)
    )


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("op", ["filtration", "dgfe", "dgfe_from_reconstruction"])
def test_every_resize_and_size(op: str, resize: str, kit: Any, sizes: Any, native_layout: str, device: str) -> None:
    kit.assert_agrees(kit.case(op, sizes, torch.float32, device, native_layout, resize=resize))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", ["difference_map", "reconstruction_difference", "dgfe_from_reconstruction"])
@pytest.mark.parametrize("from_logits", [False, True])
def test_half_reconstruction_beside_float32_image(
    op: str, from_logits: bool, half: torch.dtype, kit: Any, device: str
) -> None:
    case = kit.case(op, device=device, from_logits=from_logits)
    case.tensors["reconstruction"] = case.tensors["reconstruction"].to(half)
    kit.assert_agrees(case)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("narrowed", ["features", "parameters", "image", "features and image"])
def test_reconstruction_tail_with_mixed_dtypes(
    narrowed: str, half: torch.dtype, kit: Any, native_layout: str, device: str
) -> None:
    case = kit.case("reconstruction_tail", kit.sizes["even"], device=device, layout=native_layout)
    if "features" in narrowed:
        case.tensors["features"] = case.tensors["features"].to(half)
    if "image" in narrowed:
        case.options["image"] = case.options["image"].to(half)
    if narrowed == "parameters":
        case.tensors |= {name: case.tensors[name].to(half) for name in ("weight", "bias")}
    kit.assert_agrees(case)


@pytest.mark.parametrize("channels", [31, 32, 33, 64, 65, 96, 128])
def test_reconstruction_tail_of_many_widths_and_channels(
    channels: int, kit: Any, dtype: torch.dtype, native_layout: str, device: str
) -> None:
    """Around what kernels take at once: channels, and pixels of a row."""
    for height, width in ((3, 2), (17, 31), (33, 33), (14, 49), (2, 287), (1, 290)):
        sizes = kit.new_sizes(2, channels, height, 1, height, width, 1)
        kit.assert_agrees(kit.case("reconstruction_tail", sizes, dtype, device, native_layout))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("widened", ["difference", "mlp", "threshold", "features"])
def test_dgfe_with_mixed_dtypes(widened: str, half: torch.dtype, kit: Any, native_layout: str, device: str) -> None:
    case = kit.case("dgfe", kit.sizes["odd"], half, device, native_layout)
    case.tensors["threshold"] = case.tensors["threshold"].to(half)
    for name in case.tensors:
        if name == widened or (widened == "mlp" and name.startswith(("weight", "bias"))):
            case.tensors[name] = case.tensors[name].float()
    kit.assert_agrees(case)


def test_only_the_gradients_asked_for(kit: Any, device: str) -> None:
    for op in (
        "difference_map",
        "reconstruction_difference",
        "reconstruction_tail",
        "filtration",
        "channel_reweighting",
        "dgfe",
        "dgfe_from_reconstruction",
    ):
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
@pytest.mark.parametrize("op", ["reconstruction_difference", "reconstruction_tail", "dgfe_from_reconstruction"])
def test_one_of_two_results_used(op: str, used: int, kit: Any, device: str) -> None:
    case = kit.case(op, device=device, valid_size=True).require_grad()
    exact = case.in_float64().require_grad()
    output, expected = case.run()[used], exact.specified()[used]
    cotangent = torch.randn_like(output)
    gradients = case.gradients((output,), (cotangent,))
    tensors = list(exact.tensors.values())
    by_reference = torch.autograd.grad(expected, tensors, cotangent.double(), materialize_grads=True)
    for name, gradient in zip(gradients, by_reference, strict=True):
        tolerance = 1e-5 * gradient.abs().max().item()
        torch.testing.assert_close(gradients[name], gradient.float(), rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("image_grad", [False, True])  # with it the op itself runs the two ops
def test_dgfe_from_reconstruction_is_made_of_two_ops(
    image_grad: bool, from_logits: bool, resize: str, kit: Any, native_layout: str, device: str
) -> None:
    of_images = {"from_logits": from_logits, "valid_size": True}
    of_dgfe = {"resize": resize, "surrogate": "atan", "alpha": 20}
    case = kit.case("dgfe_from_reconstruction", device=device, layout=native_layout, **of_images, **of_dgfe)
    if image_grad:
        case.tensors["image"] = case.options.pop("image")
    case.require_grad()
    tensors = dict(case.tensors)
    images = {"reconstruction": tensors.pop("reconstruction")}
    images["image"] = tensors.pop("image") if image_grad else case.options["image"]
    of_images["valid_size"] = case.options["valid_size"]

    difference, mse = ops.reconstruction_difference(**images, **of_images)
    composed = (ops.dgfe(**tensors, difference=difference, **of_dgfe), mse)
    fused = case.run()
    torch.testing.assert_close(fused, composed, rtol=1e-6, atol=0)
    cotangents = (torch.randn_like(composed[0]), torch.tensor(0.7, device=device))
    expected = case.gradients(composed, cotangents)
    for name, gradient in case.gradients(fused, cotangents).items():
        tolerance = 1e-5 * expected[name].abs().max().item()
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("image_grad", [False, True])
def test_dgfe_from_reconstruction_without_mse(
    image_grad: bool, kit: Any, sizes: Any, dtype: torch.dtype, device: str
) -> None:
    case = kit.case("dgfe_from_reconstruction", sizes, dtype, device, "sliced")
    case.options["image"].requires_grad_(image_grad)
    enhanced, _ = case.run()
    without, mse = ops.dgfe_from_reconstruction(**case.tensors, **case.options, with_mse=False)
    assert mse is None
    assert torch.equal(without, enhanced)
    if not image_grad:
        case.options["with_mse"] = False
        kit.assert_agrees(case)


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
    output = module(case.tensors["features"], case.tensors["difference"])
    (expected,) = case.specified()
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
