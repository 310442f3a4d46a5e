"""Filtration: the difference map, binarised by a threshold that can learn and resized to the feature map (Eq. 4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import reference
from ._checks import check_floating, check_shape, check_threshold
from ._extension import runs_fused
from ._registration import register_autograd, register_fake, register_once_differentiable
from .surrogate import resize_code, resolve_alpha, surrogate_code


def filtration(
    difference: Tensor,
    threshold: Tensor,
    size: tuple[int, int],
    *,
    resize: str = "nearest",
    surrogate: str = "sigmoid",
    alpha: float | None = None,
    difference_gradient: bool = False,
) -> Tensor:
    """`Resize((sign(D - t) + 1) / 2) + 1` (SR-TOD, Eq. 4): 1 where little was lost, 2 where much, 1.5 at a tie.

    The step has no useful derivative; in the backward pass that of a smooth *surrogate* stands in for it, so that the
    threshold learns. With u = D - t and a = alpha:

        none      0: the behaviour of the authors' release, whose threshold never learns
        ste       1 (straight-through)
        sigmoid   a s (1 - s), s = sigmoid(a u)
        atan      (a / 2) / (1 + (pi a u / 2)^2)
        triangle  max(0, a - a^2 |u|)
        rect      a where |u| < 1 / (2 a), else 0

    Args:
        difference: `[N, 1, H, W]` in [0, 1].
        threshold: 0-d tensor in the unit of `difference`, for example 4/255; read on its device.
        size: (h, w) of the result in pixels.
        resize: "nearest" (the paper's: one pixel in 16 counts at stride 4; index as `torch.nn.functional.interpolate`),
            "max" (any pixel over the threshold counts; the gradient goes to the first greatest difference), "area" or
            "bilinear" (of the binarised map; values between 1 and 2).
        surrogate: One of the table's names.
        alpha: Sharpness of the surrogate, per unit of difference; default: see `srtod.ops.surrogate.DEFAULT_ALPHA`.
        difference_gradient: Let the surrogate's gradient also flow to `difference`. By default it goes to the threshold
            alone. A nearest resize reads one pixel in 16 at stride 4, so with this gradient the reconstruction head
            learns to be wrong at exactly that pixel.

    Returns:
        `[N, 1, h, w]` in the dtype of `difference`. NaN in, NaN out.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If a shape, a name, `size` or `alpha` is not as above, or the devices differ.
    """
    op = "filtration"
    check_floating(op, difference=difference, threshold=threshold)
    check_shape(op, "difference", difference, "[N, 1, H, W]", None, 1, None, None)
    check_threshold(op, threshold)
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"{op}: size must be (h, w), both at least 1, got {tuple(size)}")
    codes = (resize_code(resize), surrogate_code(surrogate), resolve_alpha(surrogate, alpha))
    if not runs_fused(difference):
        return reference.filtration(
            difference,
            threshold,
            (height, width),
            resize=resize,
            surrogate=surrogate,
            alpha=alpha,
            difference_gradient=difference_gradient,
        )
    if not difference_gradient:
        difference = difference.detach()
    result: Tensor = torch.ops.srtod.filtration(difference, threshold, height, width, *codes)
    return result


@register_fake("filtration")
def _(
    difference: Tensor, threshold: Tensor, height: int, width: int, resize: int, surrogate: int, alpha: float
) -> Tensor:
    return difference.new_empty((difference.shape[0], 1, height, width))


def _setup_filtration(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    difference, threshold, _, _, *ctx.codes = inputs
    ctx.save_for_backward(difference, threshold)


@register_autograd("filtration", _setup_filtration)
def _filtration_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs_difference = ctx.needs_input_grad[0]
    grad_difference, grad_threshold = torch.ops.srtod._filtration_backward(
        grad, *ctx.saved_tensors, *ctx.codes, needs_difference
    )
    return grad_difference if needs_difference else None, grad_threshold, None, None, None, None, None


@register_fake("_filtration_backward")
def _(
    grad: Tensor,
    difference: Tensor,
    threshold: Tensor,
    resize: int,
    surrogate: int,
    alpha: float,
    difference_grad: bool,
) -> tuple[Tensor, Tensor]:
    return difference.new_empty(difference.shape if difference_grad else (0,)), threshold.new_empty(())


register_once_differentiable("_filtration_backward")
