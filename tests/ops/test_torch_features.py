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


SIZES = (2, 6, 5, 7, 20, 26, 3)


def test_all_ops_are_sampled(kit: Any, device: str) -> None:
    assert sorted(kit.calls(kit.new_sizes(*SIZES), device=device)) == kit.registered


def test_opcheck(registered_op: str, kit: Any, native_layout: str, device: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        args = kit.calls(kit.new_sizes(*SIZES), dtype, device, native_layout)[registered_op]
        if not registered_op.endswith("_") and not registered_op.startswith("_") and dtype == torch.float32:
            args = tuple(x.requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)
        torch.library.opcheck(getattr(torch.ops.srtod, registered_op), args)


def test_opcheck_without_optional_arguments(kit: Any, device: str) -> None:
    calls = kit.calls(kit.new_sizes(*SIZES), device=device)
    reconstruction, image, *_ = calls["reconstruction_difference"]
    map_grad, mse_grad, *_ = calls["_reconstruction_difference_backward"]
    torch.library.opcheck(torch.ops.srtod.reconstruction_difference, (reconstruction, image, True, None))
    backward = torch.ops.srtod._reconstruction_difference_backward
    torch.library.opcheck(backward, (None, mse_grad, reconstruction, image, True, None))
    torch.library.opcheck(backward, (map_grad, None, reconstruction, image, True, None))
    torch.library.opcheck(torch.ops.srtod._dgfe_backward, (*calls["_dgfe_backward"][:-1], False))
    torch.library.opcheck(torch.ops.srtod._filtration_backward, (*calls["_filtration_backward"][:-1], False))


def street(reconstruction: Tensor, image: Tensor, features: Tensor, module: ops.DGFE, size: tuple[int, int]) -> Tensor:
    """Every op in one function, as a detector calls them."""
    difference, mse = ops.reconstruction_difference(reconstruction, image, from_logits=True)
    enhanced = module(features, difference)
    mask = ops.filtration(ops.difference_map(reconstruction, image), module.threshold, size, resize="area")
    mlp = (module.fc1.weight, module.fc1.bias, module.fc2.weight, module.fc2.bias)
    weights = ops.channel_reweighting(features, *mlp)
    enhanced = enhanced * weights + ops.dgfe(features, difference, module.threshold, *mlp, difference_gradient=True)
    return enhanced.square().mean() + mse + mask.mean()


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
    """Compiled once for all batches and sizes, forward and backward."""
    module = ops.DGFE(16, 4).to(device)
    compiled = torch.compile(street, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch, side in ((2, 8), (3, 11), (5, 6)):
        inputs = street_inputs(kit, batch, side, native_layout, device)
        torch.testing.assert_close(gradients(compiled, inputs, module), gradients(street, inputs, module))


@torch._dynamo.config.patch(error_on_recompile=True)
def test_every_op_compiles_with_dynamic_shapes(op: str, kit: Any, native_layout: str, device: str) -> None:
    """Forward and backward, compiled once, as the compiled op and not as the reference."""
    targets: set[str] = set()

    def backend(graph: torch.fx.GraphModule, example_inputs: list[Tensor]) -> Callable[..., Any]:
        targets.update(str(node.target) for node in graph.graph.nodes)
        compiled: Callable[..., Any] = torch._dynamo.lookup_backend("aot_eager")(graph, example_inputs)
        return compiled

    compiled = torch.compile(getattr(ops, op), backend=backend, fullgraph=True, dynamic=True)
    for batch, side in ((2, 8), (3, 11), (5, 6)):
        sizes = kit.new_sizes(batch, 16, side, side + 1, 4 * side, 4 * side + 4, 4)
        case = kit.case(op, sizes, device=device, layout=native_layout).require_grad()
        outputs = compiled(**case.tensors, **case.options)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        expected = case.run()
        torch.testing.assert_close(outputs, expected)
        cotangents = tuple(torch.randn_like(output) for output in expected)
        torch.testing.assert_close(case.gradients(outputs, cotangents), case.gradients(expected, cotangents))
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
