"""DGFE: the fused op against tidy PyTorch, `torch.compile` of it, the authors' formulation and a plain copy of P2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from measurement import VARIANTS, Case
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


def make_inputs(case: Case) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    height, width = SIZES[case.size]
    features = torch.randn(case.batch, CHANNELS, height, width, generator=generator)
    difference = torch.rand(case.batch, 1, 4 * height, 4 * width, generator=generator) * 0.04
    torch.manual_seed(0)
    module = ops.DGFE(CHANNELS)
    parameters = [
        p.detach().to(case.device) for p in (module.threshold, *module.fc1.parameters(), *module.fc2.parameters())
    ]
    features = features.to(case.device, case.torch_dtype, memory_format=case.memory_format)
    if case.dtype != "float32":
        parameters[1:] = [p.to(case.torch_dtype) for p in parameters[1:]]
    return tuple(t.requires_grad_(case.needs_grad) for t in (features, difference.to(case.device), *parameters))


def variant_function(variant: str, inputs: tuple[Tensor, ...]) -> Callable[..., Any]:
    if variant == "copy":
        target = torch.empty_like(inputs[0])
        return lambda features, *_: target.copy_(features)
    return {
        "fused": ops.dgfe,
        "eager": ops.reference.dgfe,
        "compile": torch.compile(ops.reference.dgfe, dynamic=False),
        "authors": authors,
    }[variant]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_dgfe(case: Case, variant: str, measure: Callable[..., None]) -> None:
    if variant == "fused" and not ops.is_fused(case.device):
        pytest.skip(f"the compiled ops are not available on {case.device}")
    inputs = make_inputs(case)
    function = variant_function(variant, inputs)
    if variant != "copy":
        with torch.no_grad():
            expected = ops.reference.dgfe(*(t.float() for t in inputs))
            tolerance = {} if case.dtype == "float32" else {"rtol": 2e-2, "atol": 2e-2}
            torch.testing.assert_close(function(*inputs).float(), expected, **tolerance)
    grad = torch.randn_like(inputs[0])
    measure(case, variant, function, inputs, (grad,), PASSES[case.direction])
