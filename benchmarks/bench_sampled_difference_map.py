"""D at the samples of a nearest resize, from the rows around them: fused, tidy PyTorch and `torch.compile` of it.

That all agree is checked without TF32; they are timed with PyTorch's defaults.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from measurement import Case, parametrize, variant_function, without_tf32
from torch import Tensor

from srtod import ops

SIZES = {"aitod": (200, 200), "drones": (272, 480)}  # of the samples
CHANNELS, STRIDE = 64, 4

CASES = [
    Case("sampled_difference_map", size, batch, layout, dtype, "forward", device)
    for device, batch in (("cpu", 1), ("cuda", 1), ("cuda", 2))
    for size in (("aitod",) if device == "cpu" else SIZES)
    for layout in ("contiguous", "channels_last")
    for dtype in ("float32", "bfloat16")
    if device == "cpu" or torch.cuda.is_available()
]


def tidy(*inputs: Tensor) -> Tensor:
    """Three convolutions in float32, as a model without the op would do it."""
    *maps, weight, bias, image = inputs
    return ops.reference.sampled_difference_map(maps, weight, bias, image)


def fused(*inputs: Tensor) -> Tensor:
    *maps, weight, bias, image = inputs
    return ops.sampled_difference_map(maps, weight, bias, image)


def floor_bytes(features: Tensor, image: Tensor) -> float:
    """Three maps and a sixteenth of the image read, D written. In channels_last one pixel in four lies between what
    the samples look at; in planes it shares its cache line with pixels that count."""
    used = 3 / STRIDE if features.is_contiguous(memory_format=torch.channels_last) else 1
    of_maps, of_image = 3 * features.numel() * features.element_size(), image.numel() * image.element_size()
    return of_maps * used + of_image * (1 + 1 / 3) / STRIDE**2


@functools.lru_cache(maxsize=1)
def make_inputs(shapes: Case) -> tuple[Tensor, ...]:
    """Three maps behind a ReLU, weight, bias and image."""
    generator = torch.Generator(shapes.device).manual_seed(0)
    of = {"generator": generator, "device": shapes.device}
    height, width = SIZES[shapes.size]
    maps = [torch.randn((shapes.batch, CHANNELS, height, STRIDE * width), **of).relu_() for _ in range(3)]
    maps = [x.to(shapes.torch_dtype).contiguous(memory_format=shapes.memory_format) for x in maps]
    weight, bias = torch.randn((3, CHANNELS, 3, 3), **of) / 24, torch.randn(3, **of) / 10
    return *maps, weight, bias, torch.rand((shapes.batch, 3, STRIDE * height, STRIDE * width), **of)


@parametrize(CASES, lambda _: ("copy", "fused", "eager", "compile"))
def test_sampled_difference_map(case: Case, variant: str, measure: Callable[..., None]) -> None:
    if variant == "fused" and not ops.is_fused(case.device):
        pytest.skip(f"the compiled ops are not available on {case.device}")
    inputs = make_inputs(case.shapes)
    function = variant_function(variant, inputs[0], fused, tidy)
    if variant != "copy":
        with torch.no_grad(), without_tf32():
            torch.testing.assert_close(function(*inputs), tidy(*inputs), rtol=0, atol=1e-5)
    measure(case, variant, function, inputs, (), floor_bytes(inputs[0], inputs[-1]))
