"""DGFE, difference map guided feature enhancement: P2' = Reweighting(P2) * Filtration(D) * P2 (SR-TOD, Sec. 3.3)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from . import reference
from ._checks import check_floating, check_mlp, check_shape, check_threshold, empty_like
from ._extension import runs_fused
from ._registration import register_autograd, register_fake, register_once_differentiable
from .channel_reweighting import channel_reweighting, fake_mlp_gradients, fake_pooled
from .surrogate import resize_code, resolve_alpha, surrogate_code
from .threshold import Threshold


def dgfe(
    features: Tensor,
    difference: Tensor,
    threshold: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    resize: str = "nearest",
    surrogate: str = "sigmoid",
    alpha: float | None = None,
    difference_gradient: bool = False,
) -> Tensor:
    """Enhances the features where information was lost, `P2' = Reweighting(P2) * Filtration(D) * P2` (SR-TOD, Eq. 6).

    Equal to `features * channel_reweighting(features, ...) * filtration(difference, ...)`, in two passes over the
    features instead of the thirteen of the authors' formulation.

    Args:
        features: `[N, C, h, w]`, P2; contiguous or channels_last (other strides are copied once), any floating dtype.
        difference: `[N, 1, H, W]` in [0, 1], usually H = 4h, W = 4w; float64 only beside float64 features.
        threshold: 0-d tensor in the unit of `difference`, for example 4/255.
        weight1: `[R, C]`; weight1, bias1, weight2 and bias2 are the MLP of `channel_reweighting`.
        bias1: `[R]`.
        weight2: `[C, R]`.
        bias2: `[C]`.
        resize: "nearest", "max", "area" or "bilinear", see `filtration`.
        surrogate: Gradient of the step: "none", "ste", "sigmoid", "atan", "triangle" or "rect", see `filtration`.
        alpha: Sharpness of the surrogate, see `filtration`.
        difference_gradient: Let the surrogate's gradient also flow to `difference`, see `filtration`.

    Returns:
        `[N, C, h, w]` in the dtype and layout of `features`.

    Raises:
        TypeError: If dtypes do not go together.
        ValueError: If shapes, names, `alpha` or devices are not as above.
    """
    mlp = (weight1, bias1, weight2, bias2)
    _check("dgfe", features, difference, threshold, *mlp)
    tensors = (features, difference, threshold, *mlp)
    codes = (resize_code(resize), surrogate_code(surrogate), resolve_alpha(surrogate, alpha))
    if not runs_fused(features):
        return reference.dgfe(
            *tensors, resize=resize, surrogate=surrogate, alpha=alpha, difference_gradient=difference_gradient
        )
    if not difference_gradient:
        difference = difference.detach()
    enhanced: Tensor = torch.ops.srtod.dgfe(features, difference, threshold, *mlp, *codes)[0]
    return enhanced


def dgfe_(
    features: Tensor,
    difference: Tensor,
    threshold: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    resize: str = "nearest",
) -> Tensor:
    """`dgfe` for inference, overwriting `features`: no second map the size of P2 is allocated.

    Args:
        features: `[N, C, h, w]`, contiguous or channels_last; overwritten.
        difference: As in `dgfe`, like all that follow.
        threshold: 0-d.
        weight1: `[R, C]`.
        bias1: `[R]`.
        weight2: `[C, R]`.
        bias2: `[C]`.
        resize: "nearest", "max", "area" or "bilinear".

    Returns:
        `features`.

    Raises:
        TypeError: If dtypes do not go together.
        ValueError: As `dgfe`; also if gradients are being recorded or `features` has other strides.
    """
    mlp = (weight1, bias1, weight2, bias2)
    _check("dgfe_", features, difference, threshold, *mlp)
    tensors = (features, difference, threshold, *mlp)
    code = resize_code(resize)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        raise ValueError("dgfe_: overwrites what the backward pass needs; call it under torch.no_grad(), or call dgfe")
    if not features.is_contiguous() and not features.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(
            f"dgfe_: features must be contiguous or channels_last, got strides {list(features.stride())}; "
            "call dgfe, which copies"
        )
    if not runs_fused(features):
        return features.copy_(reference.dgfe(*tensors, resize=resize))
    torch.ops.srtod.dgfe_(*tensors, code)
    torch.autograd.graph.increment_version(features)  # so that a backward pass that needs them as they were complains
    return features


@register_fake("dgfe")
def _(
    features: Tensor,
    difference: Tensor,
    threshold: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    resize: int,
    surrogate: int,
    alpha: float,
) -> tuple[Tensor, ...]:
    filter_shape = (features.shape[0], 1, features.shape[2], features.shape[3])
    filter_ = features.new_empty(filter_shape, dtype=reference.compute_dtype(features.dtype))
    return empty_like(features), filter_, *fake_pooled(features, weight1)


@register_fake("dgfe_")
def _(
    features: Tensor,
    difference: Tensor,
    threshold: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    resize: int,
) -> None:
    return None


def _setup_dgfe(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, difference, threshold, weight1, _, weight2, _, *ctx.codes = inputs
    kept = output[1:]
    ctx.mark_non_differentiable(*kept)
    ctx.save_for_backward(features, difference, threshold, *kept, weight1, weight2)


@register_autograd("dgfe", _setup_dgfe)
def _dgfe_backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    needs_difference = ctx.needs_input_grad[1]
    grad_features, grad_difference, *others = torch.ops.srtod._dgfe_backward(
        grad, *ctx.saved_tensors, *ctx.codes, needs_difference
    )
    return grad_features, grad_difference if needs_difference else None, *others, None, None, None


@register_fake("_dgfe_backward")
def _(
    grad: Tensor,
    features: Tensor,
    difference: Tensor,
    threshold: Tensor,
    filter_: Tensor,
    channel_weight: Tensor,
    average: Tensor,
    maximum: Tensor,
    argmax: Tensor,
    hidden: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    resize: int,
    surrogate: int,
    alpha: float,
    difference_grad: bool,
) -> tuple[Tensor, ...]:
    grad_difference = difference.new_empty(difference.shape if difference_grad else (0,))
    return (
        empty_like(features),
        grad_difference,
        threshold.new_empty(()),
        *fake_mlp_gradients(weight1, weight2),
    )


register_once_differentiable("_dgfe_backward")


DEFAULT_REDUCTION = 16


class DGFE(Threshold):
    """`dgfe` with its parameters: the threshold `t` and the shared MLP C -> C / reduction -> C.

    Put it behind the neck of any detector: `p2 = DGFE(256)(p2, difference)`.

    At the start the channel weights of the paper are near sigmoid(0) = 0.5, which halves P2 wherever the filter is 1.
    The detector then gains by any lower threshold. With `identity_start` all channel weights start where they make up
    for the mean of the filter, so that P2 keeps its scale.

    Args:
        channels: C of the features.
        reduction: C / reduction is the width of the MLP's hidden layer.
        inplace: overwrite the features where no gradients are recorded, as in inference.
        identity_start: start with all channel weights at 1 / (1 + pass_share) instead of random ones near 0.5.
        options: threshold, learn_threshold, pass_share, resize, surrogate, alpha and difference_gradient, see
            `FiltrationOptions`. A threshold needs a surrogate other than "none" to learn. Keep it out of weight decay
            and in [0, 1] (`clamp_threshold_`).

    Raises:
        TypeError: if an option is unknown.
        ValueError: if `channels` is not a positive multiple of `reduction`, or another argument is not as above.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = DEFAULT_REDUCTION,
        *,
        inplace: bool = False,
        identity_start: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if channels < 1 or reduction < 1 or channels % reduction:
            raise ValueError(f"channels must be a positive multiple of reduction, got {channels} and {reduction}")
        self.inplace = inplace
        self.fc1 = nn.Linear(channels, channels // reduction)
        self.fc2 = nn.Linear(channels // reduction, channels)
        if identity_start:
            nn.init.zeros_(self.fc2.weight)
            # sigmoid(2 b) = 1 / (1 + pass_share): the MLP adds its bias once for the average and once for the maximum.
            nn.init.constant_(self.fc2.bias, -0.5 * math.log(self.pass_share))

    def forward(self, features: Tensor, difference: Tensor, valid: Tensor | None = None) -> Tensor:
        """Enhances the features where the difference exceeds the threshold.

        Args:
            features: `[N, C, h, w]`.
            difference: `[N, 1, H, W]`.
            valid: which pixels an automatic threshold looks at, see `Threshold.observe`.

        Returns:
            `[N, C, h, w]` in the dtype and layout of `features`.
        """
        size = (features.shape[2], features.shape[3])
        self.observe(difference, size, valid)
        mlp = (self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        if self.threshold is None:
            return features * channel_reweighting(features, *mlp) * self.filter(difference, size).to(features.dtype)
        if self.inplace and not torch.is_grad_enabled():
            return dgfe_(features, difference, self.threshold, *mlp, resize=self.resize)
        return dgfe(features, difference, self.used_threshold, *mlp, **self.step_options)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, inplace={self.inplace}"


def _check(
    op: str,
    features: Tensor,
    difference: Tensor,
    threshold: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
) -> None:
    mlp = {"weight1": weight1, "bias1": bias1, "weight2": weight2, "bias2": bias2}
    check_floating(op, features=features, difference=difference, threshold=threshold, **mlp)
    check_shape(op, "features", features, "[N, C, h, w]", None, None, None, None)
    batch = features.shape[0]
    check_shape(
        op,
        "difference",
        difference,
        lambda: f"[{batch}, 1, H, W], the features' batch of {batch}",
        *(batch, 1, None, None),
    )
    check_threshold(op, threshold)
    check_mlp(op, features, **mlp)
    if (features.dtype == torch.float64) != (difference.dtype == torch.float64):
        raise TypeError(
            f"{op}: features and difference must both be float64 or neither, "
            f"got {features.dtype} and {difference.dtype}"
        )
