"""The tail of the reconstruction: output convolution, sigmoid, difference map and loss in one op (SR-TOD, Sec. 3.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import reference
from ._checks import check_floating, check_shape, empty_like
from ._extension import runs_fused
from ._registration import register_autograd, register_fake, register_once_differentiable
from .difference_map import check_valid_size, images_backward


def reconstruction_tail(
    features: Tensor, weight: Tensor, bias: Tensor, image: Tensor, *, valid_size: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Output convolution, sigmoid, difference map and reconstruction loss from one pass over the features.

    `logits = Conv3x3(features)`, padded by one zero, and of `I_r = sigmoid(logits)` (SR-TOD, Eq. 2) the map
    `D = mean_c |I_r - I_o|` (Eq. 3) and the mean squared error, as `reconstruction_difference` has them. `I_r` itself
    is never in memory. In half precision the convolution's sums are not rounded before the sigmoid, unlike a
    convolution's output, so that D is as exact near the threshold as the features allow.

    Args:
        features: `[N, C, Hf, Wf]`, the last feature map of the reconstruction head, of at least the image's size.
        weight: `[3, C, 3, 3]`, any floating-point dtype.
        bias: `[3]`, the weight's dtype.
        image: `[N, 3, H, W]`, the real image in [0, 1], the top-left part of what the features cover. Its dtype is the
            features', or any of float16, bfloat16 and float32 beside another of these.
        valid_size: int64 `[N, 2]`, where the loss counts, see `reconstruction_difference`.

    Returns:
        The difference map `[N, 1, H, W]` in the image's dtype, the mean squared error, a 0-d float32 tensor (float64
        for float64 images), and the logits `[N, 3, H, W]` in the same type, which the gradients are computed from.

    Raises:
        TypeError: If an argument is not a floating-point tensor, dtypes do not go together or valid_size is not int64.
        ValueError: If shapes or devices do not fit.
    """
    _check(features, weight, bias, image, valid_size)
    if not runs_fused(features):
        return reference.reconstruction_tail(features, weight, bias, image, valid_size=valid_size)
    difference, mse, logits = torch.ops.srtod.reconstruction_tail(features, weight, bias, image, valid_size)
    return difference, mse, logits


@register_fake("reconstruction_tail")
def _(
    features: Tensor, weight: Tensor, bias: Tensor, image: Tensor, valid_size: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, height, width = image.shape
    dtype = reference.compute_dtype(image.dtype)
    difference = image.new_empty((batch, 1, height, width))
    return difference, image.new_empty((), dtype=dtype), image.new_empty((batch, 3, height, width), dtype=dtype)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    features, weight, _, image, valid_size = inputs
    ctx.save_for_backward(features, weight, image, output[2], valid_size)
    ctx.set_materialize_grads(False)


@register_autograd("reconstruction_tail", _setup)
def _reconstruction_tail_backward(
    ctx: Any, grad_difference: Tensor | None, grad_mse: Tensor | None, grad_logits: Tensor | None
) -> tuple[Tensor | None, ...]:
    features, weight, image, logits, valid_size = ctx.saved_tensors
    needs_features, needs_weight, needs_bias, needs_image, _ = ctx.needs_input_grad
    # Three channels against the features' C: what these take is small beside the convolution's gradients.
    grad, grad_image = None, None
    if grad_difference is not None or grad_mse is not None:
        of_difference = None if grad_difference is None else grad_difference.to(logits.dtype)
        grad, grad_image = images_backward(
            (True, needs_image), of_difference, grad_mse, logits, image.to(logits.dtype), True, valid_size
        )
    if grad_logits is not None:
        grad = grad_logits if grad is None else grad + grad_logits
    if grad is None:
        return None, None, None, None, None
    grad_features = grad_weight = grad_bias = None
    if needs_features or needs_weight:
        grad_features, grad_weight = torch.ops.srtod._output_convolution_backward(
            grad, features, weight, needs_features, needs_weight
        )
    if needs_bias:
        grad_bias = grad.sum(dim=(0, 2, 3)).to(weight.dtype)
    return (
        grad_features if needs_features else None,
        grad_weight if needs_weight else None,
        grad_bias,
        None if grad_image is None else grad_image.to(image.dtype),
        None,
    )


@register_fake("_output_convolution_backward")
def _(
    grad_logits: Tensor, features: Tensor, weight: Tensor, features_grad: bool, weight_grad: bool
) -> tuple[Tensor, Tensor]:
    return (
        empty_like(features) if features_grad else features.new_empty((0,)),
        weight.new_empty(weight.shape if weight_grad else (0,)),
    )


register_once_differentiable("_output_convolution_backward")


def check_output_convolution(op: str, features: Tensor, weight: Tensor, bias: Tensor, image: Tensor) -> None:
    """Features `[N, C, H, W]`, the convolution to three colours and the image `[N, 3, ., .]` go together.

    Raises:
        TypeError: If an argument is not a floating-point tensor, or dtypes do not go together.
        ValueError: If shapes or devices do not fit.
    """
    check_floating(op, features=features, weight=weight, bias=bias, image=image)
    check_shape(op, "features", features, "[N, C, H, W]", None, None, None, None)
    batch, channels, _, _ = features.shape
    check_shape(op, "weight", weight, lambda: f"[3, {channels}, 3, 3] for {channels} channels", 3, channels, 3, 3)
    check_shape(op, "bias", bias, "[3]", 3)
    check_shape(op, "image", image, lambda: f"[{batch}, 3, H, W], the features' batch", batch, 3, None, None)
    if weight.dtype != bias.dtype:
        raise TypeError(f"{op}: bias must have the weight's dtype {weight.dtype}, got {bias.dtype}")
    if not (features.dtype == torch.float64) == (image.dtype == torch.float64):
        raise TypeError(
            f"{op}: features and image must both be float64 or neither, got {features.dtype} and {image.dtype}"
        )


def _check(features: Tensor, weight: Tensor, bias: Tensor, image: Tensor, valid_size: Tensor | None) -> None:
    op = "reconstruction_tail"
    check_output_convolution(op, features, weight, bias, image)
    size = features.shape[2:]
    if image.shape[2] > size[0] or image.shape[3] > size[1]:
        raise ValueError(f"{op}: image must be no larger than the features {list(size)}, got {list(image.shape[2:])}")
    check_valid_size(op, image, valid_size)
