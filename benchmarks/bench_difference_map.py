"""Difference map with the reconstruction loss, from logits: fused against tidy PyTorch and `torch.compile` of it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from measurement import Case, parametrize, variant_function
from torch import Tensor

from srtod import ops

SIZES = {"square": (512, 512), "aitod": (800, 800), "visdrone": (736, 1280), "drones": (1088, 1920)}

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


def fused(logits: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    return ops.reconstruction_difference(logits, image, from_logits=True)


def floor_bytes(logits: Tensor, image: Tensor, direction: str) -> float:
    """Forward: logits and image read, D written. Backward: both and dL/dD read, the gradient of the logits written."""
    logit_bytes, image_bytes = (x.numel() * x.element_size() for x in (logits, image))
    forward, backward = logit_bytes + image_bytes * 4 / 3, 2 * logit_bytes + image_bytes * 4 / 3
    return {"forward": forward, "backward": backward, "both": forward + backward}[direction]


@functools.lru_cache(maxsize=1)
def make_inputs(shapes: Case) -> tuple[Tensor, Tensor]:
    """Logits and image."""
    generator = torch.Generator(shapes.device).manual_seed(0)
    shape = (shapes.batch, 3, *SIZES[shapes.size])
    logits = torch.randn(shape, generator=generator, device=shapes.device)
    logits = logits.to(shapes.torch_dtype).contiguous(memory_format=shapes.memory_format)
    return logits, torch.rand(shape, generator=generator, device=shapes.device)


@parametrize(CASES, lambda _: ("copy", "fused", "eager", "compile"))
def test_reconstruction_difference(case: Case, variant: str, measure: Callable[..., None]) -> None:
    if variant == "fused" and not ops.is_fused(case.device):
        pytest.skip(f"the compiled ops are not available on {case.device}")
    logits, image = make_inputs(case.shapes)
    function = variant_function(variant, logits, fused, reference)
    if variant != "copy":
        with torch.no_grad():
            torch.testing.assert_close(function(logits, image), reference(logits.float(), image), rtol=1e-4, atol=1e-6)
    inputs = (logits.detach().requires_grad_(case.needs_grad), image)
    grads = (torch.randn_like(image[:, :1]), torch.ones((), device=case.device))
    measure(case, variant, function, inputs, grads, floor_bytes(logits, image, case.direction))
