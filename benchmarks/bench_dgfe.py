"""DGFE: the fused op against tidy PyTorch, `torch.compile` of it, the authors' formulation and a plain copy of P2."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from measurement import LAUNCHES, VARIANTS, Case, compiled, parametrize
from torch import Tensor

from srtod import ops

CHANNELS = 256
SIZES = {"square": (128, 128), "aitod": (200, 200), "visdrone": (184, 320), "drones": (272, 480)}
PASSES = {"forward": 3, "backward": 4, "both": 7}  # over P2: 2 reads, 1 write; 3 reads, 1 write; the sum

CASES = [
    Case("dgfe", size, 1, layout, "float32", direction)
    for size in ("square", "aitod", "drones")
    for layout in ("contiguous", "channels_last")
    for direction in ("forward", "both")
] + [
    Case("dgfe", size, batch, layout, dtype, direction, "cuda")
    for size in ("aitod", "visdrone", "drones")
    for batch in (1, 2)
    for layout in ("contiguous", "channels_last")
    for dtype in ("bfloat16", "float32")
    for direction in ("forward", "backward", "both")
    if torch.cuda.is_available()
]


def authors(
    features: Tensor,
    difference: Tensor,
    threshold: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
) -> Tensor:
    """DGFE in the style of the paper's release: pooling over the full map, weights and filter repeated to P2's size."""
    _, channels, height, width = features.shape

    def mlp(pooled: Tensor) -> Tensor:
        return F.linear(F.linear(pooled.flatten(1), weight1, bias1).relu(), weight2, bias2)

    size = (height, width)
    weight = (mlp(F.avg_pool2d(features, size, stride=size)) + mlp(F.max_pool2d(features, size, stride=size))).sigmoid()
    reweighted = features * weight[:, :, None, None].expand_as(features)
    binary = F.interpolate((torch.sign(difference - threshold) + 1) * 0.5, size=size, mode="nearest")
    return reweighted * binary.to(features.dtype).repeat(1, channels, 1, 1) + reweighted


@functools.lru_cache(maxsize=1)
def make_inputs(shapes: Case) -> tuple[Tensor, ...]:
    """The arguments of `dgfe`. Differences are multiples of 1/1024: the threshold of 4/255 lies between two of them."""
    generator = torch.Generator(shapes.device).manual_seed(0)
    height, width = SIZES[shapes.size]
    feature_shape = (shapes.batch, CHANNELS, height, width)
    features = torch.randn(feature_shape, generator=generator, device=shapes.device)
    features = features.to(shapes.torch_dtype).contiguous(memory_format=shapes.memory_format)
    steps = torch.randint(0, 41, (shapes.batch, 1, 4 * height, 4 * width), generator=generator, device=shapes.device)
    torch.manual_seed(0)
    module = ops.DGFE(CHANNELS).to(shapes.device)
    mlp = [p.detach().to(shapes.torch_dtype) for p in (*module.fc1.parameters(), *module.fc2.parameters())]
    return (features, steps / 1024, module.threshold.detach(), *mlp)


def variant_function(variant: str, features: Tensor) -> Callable[..., Any]:
    if variant == "copy":
        target = torch.empty_like(features)
        return lambda features, *_: target.copy_(features)
    if variant == "compile":
        return compiled(ops.reference.dgfe)
    return {"eager": ops.reference.dgfe, "authors": authors}.get(variant, ops.dgfe)


def variants(case: Case) -> tuple[str, ...]:
    return (*VARIANTS, *LAUNCHES) if case.device == "cuda" and case.direction == "forward" else VARIANTS


@parametrize(CASES, variants)
def test_dgfe(case: Case, variant: str, measure: Callable[..., None]) -> None:
    if variant.startswith("fused") and not ops.is_fused(case.device):
        pytest.skip(f"the compiled ops are not available on {case.device}")
    inputs = make_inputs(case.shapes)
    function = variant_function(variant, inputs[0])
    if variant != "copy":
        with torch.no_grad():
            expected = ops.reference.dgfe(*(t.float() for t in inputs))
            tolerance = 1e-5 if case.dtype == "float32" else 2e-2
            torch.testing.assert_close(function(*inputs).float(), expected, rtol=tolerance, atol=tolerance)
            del expected
    # The difference gets no gradient, which is the default of all forms.
    inputs = tuple(t.detach().requires_grad_(case.needs_grad and k != 1) for k, t in enumerate(inputs))
    grad = torch.randn_like(inputs[0])
    floor_bytes = PASSES[case.direction] * grad.numel() * grad.element_size()
    measure(case, variant, function, inputs, (grad,), floor_bytes)
