"""Difference map with the reconstruction loss, from logits: fused against tidy PyTorch and `torch.compile` of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from measurement import Case
from torch import Tensor

from srtod import ops

SIZES = {"square": (512, 512), "aitod": (800, 800), "visdrone": (736, 1280), "drones": (1088, 1920)}
# In images of 3 channels: reads of the logits and the image, a write of D; then reads of both and of dL/dD, a write.
PASSES = {"forward": 2 + 1 / 3, "backward": 3 + 1 / 3, "both": 5 + 2 / 3}

CASES = [
    Case("reconstruction_difference", size, 1, layout, "float32", direction)
    for size in ("square", "aitod", "drones")
    for layout in ("contiguous", "channels_last")
    for direction in ("forward", "both")
] + [
    Case("reconstruction_difference", size, 2, layout, dtype, direction, "cuda")
    for size in ("aitod", "visdrone", "drones")
    for layout in ("contiguous", "channels_last")
    for dtype in ("bfloat16", "float32")
    for direction in ("forward", "backward", "both")
    if torch.cuda.is_available()
]


def reference(logits: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    return ops.reference.reconstruction_difference(logits, image, from_logits=True)


def variant_function(variant: str, inputs: tuple[Tensor, ...]) -> Callable[..., Any]:
    if variant == "copy":
        target = torch.empty_like(inputs[0])
        return lambda logits, *_: target.copy_(logits)
    return {
        "fused": lambda logits, image: ops.reconstruction_difference(logits, image, from_logits=True),
        "eager": reference,
        "compile": torch.compile(reference, dynamic=False),
    }[variant]


@pytest.mark.parametrize("variant", ["copy", "fused", "eager", "compile"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_reconstruction_difference(case: Case, variant: str, measure: Callable[..., None]) -> None:
    if variant == "fused" and not ops.is_fused(case.device):
        pytest.skip(f"the compiled ops are not available on {case.device}")
    generator = torch.Generator().manual_seed(0)
    shape = (case.batch, 3, *SIZES[case.size])
    logits = torch.randn(shape, generator=generator).to(case.device, case.torch_dtype, memory_format=case.memory_format)
    image = torch.rand(shape, generator=generator).to(case.device)
    inputs = (logits.requires_grad_(case.needs_grad), image)
    function = variant_function(variant, inputs)
    if variant != "copy":
        with torch.no_grad():
            torch.testing.assert_close(function(*inputs), reference(logits.float(), image), rtol=1e-4, atol=1e-6)
    grads = (
        torch.randn(case.batch, 1, *SIZES[case.size], generator=generator).to(case.device),
        torch.ones((), device=case.device),
    )
    measure(case, variant, function, inputs, grads, PASSES[case.direction])
