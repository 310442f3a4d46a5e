"""DGFE fed by the reconstruction instead of D: in one fused op, composed of two, in tidy PyTorch and compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from measurement import Case, compiled, parametrize
from torch import Tensor

from srtod import ops

CHANNELS = 256
SIZES = {"square": (128, 128), "aitod": (200, 200), "visdrone": (184, 320), "drones": (272, 480)}
OP = "dgfe_from_reconstruction"

CASES = [
    Case(OP, size, 1, layout, "float32", direction)
    for size in ("square", "aitod")
    for layout in ("contiguous", "channels_last")
    for direction in ("forward", "both")
] + [
    Case(OP, size, batch, layout, dtype, direction, "cuda")
    for size in ("aitod", "visdrone", "drones")
    for batch in (1, 2)
    for layout in ("contiguous", "channels_last")
    for dtype in ("bfloat16", "float32")
    for direction in ("forward", "both")
    if torch.cuda.is_available()
]


def fused(*inputs: Tensor) -> tuple[Tensor, Tensor | None]:
    return ops.dgfe_from_reconstruction(*inputs, from_logits=True)


def composed(
    features: Tensor, reconstruction: Tensor, image: Tensor, threshold: Tensor, *mlp: Tensor
) -> tuple[Tensor, Tensor]:
    difference, mse = ops.reconstruction_difference(reconstruction, image, from_logits=True)
    return ops.dgfe(features, difference, threshold, *mlp), mse


def reference(*inputs: Tensor) -> tuple[Tensor, Tensor | None]:
    return ops.reference.dgfe_from_reconstruction(*inputs, from_logits=True)


def variant_function(variant: str, features: Tensor) -> Callable[..., Any]:
    if variant == "copy":
        target = torch.empty_like(features)
        return lambda features, *_: target.copy_(features)
    if variant == "compile":
        return compiled(reference)
    functions: dict[str, Callable[..., Any]] = {"fused": fused, "composed": composed, "eager": reference}
    return functions[variant]


def variants(case: Case) -> tuple[str, ...]:
    """On CUDA `torch.compile` runs at the batch size of training alone: each shape takes it seconds."""
    if case.device == "cuda" and case.batch == 1:
        return "copy", "fused", "composed", "eager"
    return "copy", "fused", "composed", "eager", "compile"


def floor_bytes(features: Tensor, reconstruction: Tensor, image: Tensor, direction: str) -> float:
    """Forward: P2 read twice and written, both images read. Backward: P2's gradient read twice, P2 read, a gradient
    written, both images read, the gradient of the logits written."""
    p2, logits, pixels = (x.numel() * x.element_size() for x in (features, reconstruction, image))
    forward, backward = 3 * p2 + logits + pixels, 4 * p2 + 2 * logits + pixels
    return {"forward": forward, "backward": backward, "both": forward + backward}[direction]


@functools.lru_cache(maxsize=1)
def make_inputs(shapes: Case) -> tuple[Tensor, ...]:
    """The arguments of the op.

    Each pixel of the image is 0.005 or 0.03 away from the reconstruction. So no difference is near the threshold of
    4/255 = 0.0157, where the last bit of a sigmoid would decide on a whole pixel.
    """
    generator = torch.Generator(shapes.device).manual_seed(0)
    height, width = SIZES[shapes.size]

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=shapes.device)

    features, logits = (
        x.to(shapes.torch_dtype).contiguous(memory_format=shapes.memory_format)
        for x in (randn(shapes.batch, CHANNELS, height, width), randn(shapes.batch, 3, 4 * height, 4 * width))
    )
    offset = torch.where(randn(shapes.batch, 1, 4 * height, 4 * width) > 0, 0.03, 0.005)
    image = logits.float().sigmoid() - offset * logits.float().sign()  # towards 0.5, so it stays in [0, 1]
    torch.manual_seed(0)
    module = ops.DGFE(CHANNELS).to(shapes.device)
    mlp = [p.detach().to(shapes.torch_dtype) for p in (*module.fc1.parameters(), *module.fc2.parameters())]
    return (features, logits, image.contiguous(), module.threshold.detach(), *mlp)


@parametrize(CASES, variants)
def test_dgfe_from_reconstruction(case: Case, variant: str, measure: Callable[..., None]) -> None:
    if variant in ("fused", "composed") and not ops.is_fused(case.device):
        pytest.skip(f"the compiled ops are not available on {case.device}")
    inputs = make_inputs(case.shapes)
    features, reconstruction, image = inputs[:3]
    function = variant_function(variant, features)
    if variant != "copy":
        with torch.no_grad():
            tolerance = 1e-5 if case.dtype == "float32" else 2e-2
            enhanced, mse = function(*inputs)
            expected, expected_mse = reference(*(t.float() for t in inputs))
            torch.testing.assert_close(enhanced.float(), expected, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(mse, expected_mse, rtol=1e-4, atol=0)
            del enhanced, expected
    inputs = tuple(t.detach().requires_grad_(case.needs_grad and t is not image) for t in inputs)
    grads = (torch.randn_like(features), torch.ones((), device=case.device))
    measure(case, variant, function, inputs, grads, floor_bytes(features, reconstruction, image, case.direction))
