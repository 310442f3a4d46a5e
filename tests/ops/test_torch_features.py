"""torch.compile, torch.export, autocast and opcheck: what registration promises for the compiled ops."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from srtod import ops
from srtod.ops.surrogate import RESIZES


@pytest.fixture(autouse=True)
def _forget_compiled() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def sample_calls(
    kit: Any, layout: str, device: str, *, dtype: torch.dtype = torch.float32
) -> dict[str, tuple[Any, ...]]:
    """Arguments of every op that srtod registers."""
    case = kit.case("dgfe", kit.new_sizes(2, 6, 5, 7, 20, 26, 3), dtype, device, layout)
    features, difference, threshold, weight1, bias1, weight2, bias2 = case.tensors.values()
    mlp = (weight1, bias1, weight2, bias2)
    reconstruction, image = kit.case("difference_map", dtype=dtype, device=device, layout=layout).tensors.values()
    valid_size = torch.tensor([[30, 40], [32, 48]], device=device)
    _, *kept = torch.ops.srtod.dgfe(*case.tensors.values(), 2, 4, 32.0)
    pooled = kept[1:]
    weights_grad, filter_grad = torch.randn_like(pooled[0]), torch.randn_like(features[:, :1]).contiguous()
    map_grad, mse_grad = torch.randn_like(image[:, :1]), torch.tensor(0.5, device=device)
    maps_grad = torch.randn_like(features)
    images = (reconstruction, image)
    tail = kit.case("reconstruction_tail", kit.new_sizes(2, 6, 5, 7, 20, 26, 3), dtype, device, layout)
    wide, weight, bias = tail.tensors.values()
    logits_grad = torch.randn(2, 3, 20, 26, device=device)
    return {
        "difference_map": (reconstruction, image, True),
        "reconstruction_difference": (reconstruction, image, False, valid_size),
        "_reconstruction_difference_backward": (map_grad, mse_grad, reconstruction, image, False, valid_size),
        "reconstruction_tail": (
            wide,
            weight,
            bias,
            tail.options["image"],
            torch.tensor([[20, 13], [7, 26]], device=device),
        ),
        "_output_convolution_backward": (logits_grad, wide, weight, True, True),
        "sampled_difference_map": ([wide[:, :, ::4, ::4]] * 9, weight, bias, tail.options["image"]),
        "filtration": (difference, threshold, 5, 7, 3, 2, 40.0),
        "_filtration_backward": (filter_grad, difference, threshold, 1, 3, 40.0),
        "channel_reweighting": (features, *mlp),
        "_channel_reweighting_backward": (weights_grad, features, *pooled, *mlp[:3]),
        "dgfe": (features, difference, threshold, *mlp, 0, 2, 112.0),
        "dgfe_": (features.clone(), difference, threshold, *mlp, 2),
        "_dgfe_backward": (maps_grad, features, difference, threshold, *kept, *mlp[:3], 2, 4, 32.0, True),
        "dgfe_from_reconstruction": (features, *images, threshold, *mlp, True, valid_size, True, 2, 4, 32.0),
        "_dgfe_from_reconstruction_backward": (
            *(maps_grad, mse_grad, features, *images, threshold, *kept, *mlp[:3]),
            *(True, valid_size, 2, 4, 32.0, True),
        ),
    }


def test_all_ops_are_sampled(kit: Any, device: str) -> None:
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("srtod::")}
    assert {f"srtod::{name}" for name in sample_calls(kit, "contiguous", device)} == registered


@pytest.mark.parametrize(
    "op",
    [
        "difference_map",
        "reconstruction_difference",
        "_reconstruction_difference_backward",
        "reconstruction_tail",
        "_output_convolution_backward",
        "sampled_difference_map",
        "filtration",
        "_filtration_backward",
        "channel_reweighting",
        "_channel_reweighting_backward",
        "dgfe",
        "dgfe_",
        "_dgfe_backward",
        "dgfe_from_reconstruction",
        "_dgfe_from_reconstruction_backward",
    ],
)
def test_opcheck(op: str, kit: Any, native_layout: str, device: str) -> None:
    differentiable = not op.endswith(("_backward", "_")) and op != "sampled_difference_map"
    for dtype in (torch.float32, torch.bfloat16):
        args = sample_calls(kit, native_layout, device, dtype=dtype)[op]
        if differentiable and dtype == torch.float32:
            no_grad = 2 if op == "dgfe_from_reconstruction" else None  # the image
            args = tuple(
                x.requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() and k != no_grad else x
                for k, x in enumerate(args)
            )
        torch.library.opcheck(getattr(torch.ops.srtod, op), args)


def test_opcheck_without_optional_arguments(kit: Any, device: str) -> None:
    calls = sample_calls(kit, "contiguous", device)
    reconstruction, image, *_ = calls["reconstruction_difference"]
    map_grad, mse_grad, *_ = calls["_reconstruction_difference_backward"]
    torch.library.opcheck(torch.ops.srtod.reconstruction_difference, (reconstruction, image, True, None))
    backward = torch.ops.srtod._reconstruction_difference_backward
    torch.library.opcheck(backward, (None, mse_grad, reconstruction, image, True, None))
    torch.library.opcheck(backward, (map_grad, None, reconstruction, image, True, None))
    torch.library.opcheck(torch.ops.srtod._dgfe_backward, (*calls["_dgfe_backward"][:-1], False))
    torch.library.opcheck(torch.ops.srtod.reconstruction_tail, (*calls["reconstruction_tail"][:-1], None))
    convolution_backward, (*args, _, _) = (
        torch.ops.srtod._output_convolution_backward,
        calls["_output_convolution_backward"],
    )
    for wanted in ((True, False), (False, True)):
        torch.library.opcheck(convolution_backward, (*args, *wanted))
    features, *others = calls["dgfe_from_reconstruction"]
    others[8:10] = (None, False)  # valid_size, with_mse
    torch.library.opcheck(torch.ops.srtod.dgfe_from_reconstruction, (features.clone().requires_grad_(), *others))
    maps_grad, _, *others = calls["_dgfe_from_reconstruction_backward"]
    others[13], others[17] = None, False  # valid_size, reconstruction_grad
    torch.library.opcheck(torch.ops.srtod._dgfe_from_reconstruction_backward, (maps_grad, None, *others))


def street(reconstruction: Tensor, image: Tensor, features: Tensor, module: ops.DGFE, size: tuple[int, int]) -> Tensor:
    """Every op in one function, as a detector calls them."""
    difference, mse = ops.reconstruction_difference(reconstruction, image, from_logits=True)
    enhanced = module(features, difference)
    mask = ops.filtration(ops.difference_map(reconstruction, image), module.threshold, size, resize="area")
    mlp = (module.fc1.weight, module.fc1.bias, module.fc2.weight, module.fc2.bias)
    weights = ops.channel_reweighting(features, *mlp)
    again, error = ops.dgfe_from_reconstruction(features, reconstruction, image, module.threshold, *mlp)
    inferred, _ = ops.dgfe_from_reconstruction(features, reconstruction, image, module.threshold, *mlp, with_mse=False)
    enhanced = enhanced * weights + again - 0.5 * inferred
    tail = (reconstruction[:, :1] * 2, module.fc1.weight[:3, :9].reshape(3, 1, 3, 3), module.fc2.bias[:3], image)
    tail_difference, tail_mse, logits = ops.reconstruction_tail(*tail)
    loss = enhanced.square().mean() + mse + mask.mean() + error
    return loss + tail_difference.mean() + tail_mse + 0.1 * logits.mean()


def street_inputs(kit: Any, batch: int, side: int, layout: str, device: str) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((batch, 3, 4 * side, 4 * side + 4), (batch, 3, 4 * side, 4 * side + 4), (batch, 16, side, side + 1))
    inputs = (kit.lay_out(torch.rand(shape, device=device), layout) for shape in shapes)
    reconstruction, image, features = inputs
    return reconstruction.requires_grad_(), image, features.requires_grad_()


def gradients(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], module: ops.DGFE) -> list[Tensor]:
    size = (inputs[2].shape[2], inputs[2].shape[3])
    loss = function(*inputs, module, size)
    return [loss, *torch.autograd.grad(loss, [inputs[0], inputs[2], *module.parameters()])]


@torch._dynamo.config.patch(error_on_recompile=True)
def test_compile_with_dynamic_shapes(kit: Any, native_layout: str, device: str) -> None:
    """Compiled once for all batches and sizes, forward and backward, with every op in the graph."""
    module = ops.DGFE(16, 4).to(device)
    targets: set[str] = set()

    def backend(graph: torch.fx.GraphModule, example_inputs: list[Tensor]) -> Callable[..., Any]:
        targets.update(str(node.target) for node in graph.graph.nodes)
        compiled: Callable[..., Any] = torch._dynamo.lookup_backend("aot_eager")(graph, example_inputs)
        return compiled

    compiled = torch.compile(street, backend=backend, fullgraph=True, dynamic=True)
    for batch, side in ((2, 8), (3, 11), (5, 6)):
        inputs = street_inputs(kit, batch, side, native_layout, device)
        torch.testing.assert_close(gradients(compiled, inputs, module), gradients(street, inputs, module))
    public = ("reconstruction_difference", "dgfe", "difference_map", "filtration", "channel_reweighting")
    for op in (*public, "dgfe_from_reconstruction", "reconstruction_tail"):
        assert f"srtod.{op}" in targets or f"srtod.{op}.default" in targets, targets


def test_compile_with_inductor(kit: Any, device: str) -> None:
    module = ops.DGFE(16, 4).to(device)
    inputs = street_inputs(kit, 2, 8, "channels_last", device)
    compiled = torch.compile(street, fullgraph=True)
    torch.testing.assert_close(gradients(compiled, inputs, module), gradients(street, inputs, module))


@pytest.mark.parametrize("resize", RESIZES)
def test_compiled_in_place(resize: str, kit: Any, native_layout: str, device: str) -> None:
    module = ops.DGFE(16, 4, inplace=True, resize=resize).to(device)
    tensors = kit.case("dgfe", device=device, layout=native_layout).tensors
    features, difference = tensors["features"], tensors["difference"]
    compiled = torch.compile(lambda x, d: module(x + 1, d) * 2, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(features, difference), module(features + 1, difference) * 2)
        overwritten = features.clone()
        torch.compile(module, backend="aot_eager", fullgraph=True)(overwritten, difference)
        assert torch.equal(overwritten, module(features, difference))


@pytest.mark.parametrize("inplace", [False, True])
def test_export(inplace: bool, kit: Any, device: str) -> None:
    module = ops.DGFE(16, 4, inplace=inplace).to(device).eval()
    tensors = kit.case("dgfe", device=device).tensors
    dims = {
        "batch": torch.export.Dim("batch", min=1),
        "h": torch.export.Dim("h", min=2),
        "w": torch.export.Dim("w", min=2),
    }
    dynamic = {
        "features": {0: dims["batch"], 2: dims["h"], 3: dims["w"]},
        "difference": {0: dims["batch"], 2: 4 * dims["h"], 3: 4 * dims["w"]},
    }
    with torch.no_grad():
        program = torch.export.export(
            module, (tensors["features"].clone(), tensors["difference"]), dynamic_shapes=dynamic
        )
        name = "srtod.dgfe_.default" if inplace else "srtod.dgfe.default"
        assert name in {str(node.target) for node in program.graph.nodes}
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        loaded = torch.export.load(file).module()
        other = kit.case("dgfe", kit.new_sizes(3, 16, 9, 5, 36, 20, 4), device=device).tensors
        for inputs in (tensors, other):
            expected = ops.DGFE.forward(module, inputs["features"].clone(), inputs["difference"])
            assert torch.equal(loaded(inputs["features"].clone(), inputs["difference"]), expected)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(half: torch.dtype, kit: Any, device: str) -> None:
    """Under autocast features arrive in half precision and parameters in float32; the ops compute in float32 anyway."""
    module = ops.DGFE(16, 4).to(device)
    for dtype in (half, torch.float32):
        tensors = kit.case("dgfe", dtype=dtype, device=device).tensors
        features = tensors["features"].requires_grad_()
        plain = module(features, tensors["difference"])
        with torch.autocast(device, half):
            cast = module(features, tensors["difference"])
            with ops.use_reference():
                specified = module(features, tensors["difference"])
        assert cast.dtype == specified.dtype == dtype
        assert torch.equal(cast, plain)
        tolerance = max(torch.finfo(dtype).eps, 1e-5)
        torch.testing.assert_close(specified, plain, rtol=tolerance, atol=1e-6)
        cast.float().sum().backward()
        assert module.threshold.grad.dtype == torch.float32
        assert module.threshold.grad != 0


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_does_not_round_the_images(half: torch.dtype, kit: Any, device: str) -> None:
    """A float32 image and float32 parameters beside half-precision features and logits."""
    case = kit.case("dgfe_from_reconstruction", device=device, from_logits=True).require_grad()
    case.tensors |= {name: case.tensors[name].detach().to(half) for name in ("features", "reconstruction")}
    plain = case.run()
    with torch.autocast(device, half):
        cast, specified = case.run(), case.specified()
    assert [x.dtype for x in cast] == [x.dtype for x in specified] == [half, torch.float32]
    assert all(torch.equal(x, y) for x, y in zip(cast, plain, strict=True))
    torch.testing.assert_close(specified, plain, rtol=torch.finfo(half).eps, atol=1e-6)
    sum(x.float().sum() for x in cast).backward()
    assert case.tensors["threshold"].grad != 0


def test_autocast_around_convolutions(kit: Any, device: str) -> None:
    module = torch.nn.Conv2d(3, 16, 3, padding=1).to(device)
    image = torch.rand(1, 3, 16, 16, device=device)
    with torch.autocast(device, torch.bfloat16):
        features = module(image)
        logits = features[:, :3]
        difference, mse = ops.reconstruction_difference(logits, image, from_logits=True)
        enhanced = ops.DGFE(16, 4).to(device)(features, difference)
    assert (features.dtype, difference.dtype, enhanced.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    (enhanced.float().mean() + mse).backward()
    assert module.weight.grad.abs().sum() > 0


def test_autocast_around_the_tail(kit: Any, device: str) -> None:
    """bfloat16 features beside float32 parameters and image: everything behind the features is in float32."""
    decoder = torch.nn.Conv2d(3, 32, 3, padding=1).to(device)
    output = torch.nn.Conv2d(32, 3, 3, padding=1).to(device)
    image = torch.rand(1, 3, 16, 20, device=device)
    with torch.autocast(device, torch.bfloat16):
        features = decoder(image)
        difference, mse, logits = ops.reconstruction_tail(features, output.weight, output.bias, image)
        expected = ops.reference.reconstruction_tail(features, output.weight, output.bias, image)
    assert features.dtype == torch.bfloat16
    assert difference.dtype == mse.dtype == logits.dtype == torch.float32
    torch.testing.assert_close((difference, mse, logits), expected)
    (difference.mean() + mse).backward()
    assert all(x.grad.dtype == x.dtype and x.grad.abs().sum() > 0 for x in (decoder.weight, output.weight, output.bias))
