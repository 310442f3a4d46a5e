"""The reconstruction's tail, from the last feature map to D and loss: fused, tidy PyTorch and `torch.compile` of it.

That all agree is checked without TF32; they are timed with PyTorch's defaults.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from measurement import Case, parametrize, variant_function, without_tf32
from torch import Tensor

from srtod import ops

SIZES = {"square": (512, 512), "aitod": (800, 800), "drones": (1088, 1920)}
CHANNELS = 64

CASES = [
    Case("reconstruction_tail", size, 1, layout, dtype, direction)
    for size in ("square", "aitod")
    for layout in ("contiguous", "channels_last")
    for dtype in ("float32", "bfloat16")
    for direction in ("forward", "both")
] + [
    Case("reconstruction_tail", size, 2, layout, dtype, direction, "cuda")
    for size in ("aitod", "drones")
    for layout in ("contiguous", "channels_last")
    for dtype in ("bfloat16", "float32")
    for direction in ("forward", "backward", "both")
    if torch.cuda.is_available()
]


def tidy(features: Tensor, weight: Tensor, bias: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """As a model without the op would do it: the convolution in the features' type, the rest in float32."""
    logits = F.conv2d(features, weight.to(features.dtype), bias.to(features.dtype), padding=1)
    return ops.reference.reconstruction_difference(logits, image, from_logits=True)


def fused(features: Tensor, weight: Tensor, bias: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    return ops.reconstruction_tail(features, weight, bias, image)[:2]


def floor_bytes(features: Tensor, image: Tensor, direction: str) -> float:
    """Forward: features and image read, logits and D written. Backward: features read, their gradient written; logits,
    image and dL/dD read; the logits' gradient written once and read twice, for the gradients of features and weight."""
    of_features, of_image = (x.numel() * x.element_size() for x in (features, image))
    forward = of_features + of_image * 7 / 3
    backward = 2 * of_features + of_image * (2 + 1 / 3 + 3)
    return {"forward": forward, "backward": backward, "both": forward + backward}[direction]


@functools.lru_cache(maxsize=1)
def make_inputs(shapes: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features behind a ReLU, weight, bias and image."""
    generator = torch.Generator(shapes.device).manual_seed(0)
    of = {"generator": generator, "device": shapes.device}
    size = SIZES[shapes.size]
    features = torch.randn((shapes.batch, CHANNELS, *size), **of).relu_()
    features = features.to(shapes.torch_dtype).contiguous(memory_format=shapes.memory_format)
    weight, bias = torch.randn((3, CHANNELS, 3, 3), **of) / 24, torch.randn(3, **of) / 10
    return features, weight, bias, torch.rand((shapes.batch, 3, *size), **of)


@parametrize(CASES, lambda _: ("copy", "fused", "eager", "compile"))
def test_reconstruction_tail(case: Case, variant: str, measure: Callable[..., None]) -> None:
    if variant == "fused" and not ops.is_fused(case.device):
        pytest.skip(f"the compiled ops are not available on {case.device}")
    features, weight, bias, image = make_inputs(case.shapes)
    function = variant_function(variant, features, fused, tidy)
    if variant != "copy":
        # Half precision rounds the logits of the forms that are not fused, and their weights: by 2^-9 of up to 4.
        tolerance = 1e-4 if case.dtype == "float32" else 2e-2
        with torch.no_grad(), without_tf32():
            expected = ops.reference.reconstruction_tail(features, weight, bias, image)[:2]
            torch.testing.assert_close(function(features, weight, bias, image), expected, rtol=1e-3, atol=tolerance)
    inputs = (*(x.detach().requires_grad_(case.needs_grad) for x in (features, weight, bias)), image)
    grads = (torch.randn_like(image[:, :1]), torch.ones((), device=case.device))
    measure(case, variant, function, inputs, grads, floor_bytes(features, image, case.direction))
