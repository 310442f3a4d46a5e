"""Channel reweighting: which channels of the feature map matter, from its average and maximum (SR-TOD, Eq. 5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import reference
from ._checks import check_floating, check_mlp, check_shape, empty_like
from ._extension import runs_fused
from ._registration import register_autograd, register_fake, register_once_differentiable


def channel_reweighting(features: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """`sigmoid(MLP(avgpool(P2)) + MLP(maxpool(P2)))` with one shared MLP, `W2 relu(W1 v + b1) + b2` (SR-TOD, Eq. 5).

    Args:
        features: `[N, C, h, w]`, contiguous or channels_last; other strides are copied once.
        weight1: `[R, C]`, the first layer, to R = C / reduction values.
        bias1: `[R]`.
        weight2: `[C, R]`.
        bias2: `[C]`.

    Returns:
        `[N, C, 1, 1]` in (0, 1), in the dtype of `features`. The maximum's gradient goes to its first pixel.

    Raises:
        TypeError: If an argument is not a floating-point tensor, or the MLP's four differ in dtype.
        ValueError: If shapes or devices do not fit.
    """
    op = "channel_reweighting"
    check_floating(op, features=features, weight1=weight1, bias1=bias1, weight2=weight2, bias2=bias2)
    check_shape(op, "features", features, "[N, C, h, w]", None, None, None, None)
    check_mlp(op, features, weight1, bias1, weight2, bias2)
    if not runs_fused(features):
        return reference.channel_reweighting(features, weight1, bias1, weight2, bias2)
    weights: Tensor = torch.ops.srtod.channel_reweighting(features, weight1, bias1, weight2, bias2)[0]
    return weights.to(features.dtype)[:, :, None, None]


@register_fake("channel_reweighting")
def _(features: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> tuple[Tensor, ...]:
    return fake_pooled(features, weight1)


def fake_pooled(features: Tensor, weight1: Tensor) -> tuple[Tensor, ...]:
    """What the compiled ops keep for the backward pass: channel weights, average, maximum and arg-max, each `[N, C]`,
    and the MLP's hidden layers of average and maximum before the ReLU, `[N, 2, R]`.
    """
    batch, channels = features.shape[:2]
    dtype = reference.compute_dtype(features.dtype)
    weights, average, maximum = (features.new_empty((batch, channels), dtype=dtype) for _ in range(3))
    argmax = features.new_empty((batch, channels), dtype=torch.int64)
    return weights, average, maximum, argmax, features.new_empty((batch, 2, weight1.shape[0]), dtype=dtype)


def _setup_channel_reweighting(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, weight1, _, weight2, _ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(features, *output, weight1, weight2)


@register_autograd("channel_reweighting", _setup_channel_reweighting)
def _channel_reweighting_backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor, ...]:
    gradients: tuple[Tensor, ...] = torch.ops.srtod._channel_reweighting_backward(grad.contiguous(), *ctx.saved_tensors)
    return gradients


@register_fake("_channel_reweighting_backward")
def _(
    grad: Tensor,
    features: Tensor,
    channel_weight: Tensor,
    average: Tensor,
    maximum: Tensor,
    argmax: Tensor,
    hidden: Tensor,
    weight1: Tensor,
    weight2: Tensor,
) -> tuple[Tensor, ...]:
    return empty_like(features), *fake_mlp_gradients(weight1, weight2)


def fake_mlp_gradients(weight1: Tensor, weight2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of weight1 `[R, C]`, bias1 `[R]`, weight2 `[C, R]` and bias2 `[C]`."""
    return (
        weight1.new_empty(weight1.shape),
        weight1.new_empty(weight1.shape[:1]),
        weight2.new_empty(weight2.shape),
        weight2.new_empty(weight2.shape[:1]),
    )


register_once_differentiable("_channel_reweighting_backward")
