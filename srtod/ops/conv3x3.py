"""The 3x3 convolution of the reconstruction heads, by Winograd's way where that is faster."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference
from ._extension import runs_fused
from ._registration import register_autograd, register_fake

FEWEST_CHANNELS = 32
"""Of input and output: with fewer, the transforms cost what the multiplications save."""


def conv3x3(features: Tensor, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """`F.conv2d(features, weight, bias, padding=1)`, then a ReLU if `relu`.

    Where `runs_winograd` says so, each tile of 2x2 pixels takes 16 multiplications in place of 36 (Lavin & Gray, 2016).
    Float32 errors are about those of `F.conv2d`. NaN or an infinite value makes NaN of its whole tile.

    Args:
        features: `[N, C, H, W]`.
        weight: `[K, C, 3, 3]`.
        bias: `[K]`, or None.
        relu: whether a ReLU follows.

    Returns:
        `[N, K, H, W]`.
    """
    if not runs_winograd(features, weight):
        return reference.conv3x3(features, weight, bias, relu=relu)
    result: Tensor = torch.ops.srtod.conv3x3(features, weight, relu and bias is None)
    if bias is None:
        return result
    result += bias[:, None, None]
    return F.relu(result, inplace=True) if relu else result


def runs_winograd(features: Tensor, weight: Tensor) -> bool:
    """Whether `conv3x3` runs compiled: on CPUs with AVX2, in float32, for channels_last maps of many channels."""
    return (
        features.device.type == "cpu"
        and features.dtype == weight.dtype == torch.float32
        and min(weight.shape[:2]) >= FEWEST_CHANNELS
        and not torch.is_autocast_enabled("cpu")
        and features.is_contiguous(memory_format=torch.channels_last)
        and _HAS_AVX2
        and runs_fused(features)
    )


_HAS_AVX2 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


@register_fake("conv3x3")
def _(features: Tensor, weight: Tensor, relu: bool) -> Tensor:
    n, _, h, w = features.shape
    return features.new_empty((n, weight.shape[0], h, w)).to(memory_format=torch.channels_last)


def _setup_conv3x3(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, weight, ctx.relu = inputs
    ctx.save_for_backward(features, weight, *((output,) if ctx.relu else ()))


@register_autograd("conv3x3", _setup_conv3x3)
def _conv3x3_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    features, weight, *output = ctx.saved_tensors
    grad = grad.contiguous(memory_format=torch.channels_last)
    if ctx.relu:
        grad = torch.ops.aten.threshold_backward(grad, *output, 0)
    needs_features, needs_weight, _ = ctx.needs_input_grad
    grad_features = grad_weight = None
    if needs_features:  # the convolution of the gradient with the weight's mirror image
        grad_features = torch.ops.srtod.conv3x3(grad, weight.flip(2, 3).transpose(0, 1), False)
    if needs_weight:
        grad_weight = torch.ops.aten.convolution_backward(
            grad, features, weight, None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1, (False, True, False)
        )[1]
    return grad_features, grad_weight, None
