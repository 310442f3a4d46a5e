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
from .difference_map import check_images, reconstruction_difference
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

    Returns:
        `[N, C, h, w]` in the dtype and layout of `features`.

    Raises:
        TypeError: If dtypes do not go together.
        ValueError: If shapes, names, `alpha` or devices are not as above.
    """
    mlp = (weight1, bias1, weight2, bias2)
    _check("dgfe", features, threshold, *mlp, difference=difference)
    difference = difference if difference_gradient else difference.detach()
    tensors = (features, difference, threshold, *mlp)
    codes = (resize_code(resize), surrogate_code(surrogate), resolve_alpha(surrogate, alpha))
    if not runs_fused(features):
        return reference.dgfe(*tensors, resize=resize, surrogate=surrogate, alpha=alpha)
    enhanced: Tensor = torch.ops.srtod.dgfe(*tensors, *codes)[0]
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
    _check("dgfe_", features, threshold, *mlp, difference=difference)
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
    return empty_like(features), _fake_filter(features), *fake_pooled(features)


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


def _fake_filter(features: Tensor) -> Tensor:
    """What the compiled ops keep of Filtration(D), `[N, 1, h, w]`."""
    shape = (features.shape[0], 1, features.shape[2], features.shape[3])
    return features.new_empty(shape, dtype=reference.compute_dtype(features.dtype))


def _setup_dgfe(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, difference, threshold, weight1, bias1, weight2, _, *ctx.codes = inputs
    kept = output[1:]
    ctx.mark_non_differentiable(*kept)
    ctx.save_for_backward(features, difference, threshold, *kept, weight1, bias1, weight2)


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
    weight1: Tensor,
    bias1: Tensor,
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


def dgfe_from_reconstruction(
    features: Tensor,
    reconstruction: Tensor,
    image: Tensor,
    threshold: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    from_logits: bool = False,
    valid_size: Tensor | None = None,
    with_mse: bool = True,
    resize: str = "nearest",
    surrogate: str = "sigmoid",
    alpha: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`dgfe` by the difference of two images, without a difference map in memory (SR-TOD, Eq. 3-6).

    Equal to `difference, mse = reconstruction_difference(reconstruction, image, ...)` and `dgfe(features, difference,
    ...)`, but for one thing: the difference is not rounded to the image's dtype, it stays in float32 (float64 for
    float64 images). If the image requires gradients, exactly these two ops run.

    Args:
        features: `[N, C, h, w]`, P2; contiguous or channels_last (other strides are copied once), any floating dtype.
        reconstruction: `[N, K, H, W]`, the rebuilt image in [0, 1], or its logits if `from_logits`; usually K = 3,
            H = 4h, W = 4w.
        image: `[N, K, H, W]`, the real image in [0, 1]. Its dtype is the reconstruction's, or float32 beside a
            half-precision reconstruction; float64 only beside float64 features.
        threshold: 0-d tensor in the unit of the images, for example 4/255.
        weight1: `[R, C]`; weight1, bias1, weight2 and bias2 are the MLP of `channel_reweighting`.
        bias1: `[R]`.
        weight2: `[C, R]`.
        bias2: `[C]`.
        from_logits: Take the sigmoid of `reconstruction` first, in float32.
        valid_size: int64 `[N, 2]`, where the loss counts, see `reconstruction_difference`.
        with_mse: Compute the loss; without it only the pixels that the resize looks at need be read.
        resize: "nearest", "max", "area" or "bilinear", see `filtration`.
        surrogate: Gradient of the step: "none", "ste", "sigmoid", "atan", "triangle" or "rect", see `filtration`.
        alpha: Sharpness of the surrogate, see `filtration`.

    Returns:
        The enhanced features `[N, C, h, w]`, in the dtype and layout of `features`, and the mean squared error, a 0-d
        float32 tensor (float64 for float64 images), or None if not `with_mse`. The reconstruction gets gradients
        through both.

    Raises:
        TypeError: If dtypes do not go together.
        ValueError: If shapes, names, `alpha` or devices are not as above.
    """
    op = "dgfe_from_reconstruction"
    mlp = (weight1, bias1, weight2, bias2)
    _check(op, features, threshold, *mlp, reconstruction=reconstruction, image=image)
    check_images(op, reconstruction, image, valid_size)
    codes = (resize_code(resize), surrogate_code(surrogate), resolve_alpha(surrogate, alpha))
    tensors = (features, reconstruction, image, threshold, *mlp)
    if not runs_fused(features):
        return reference.dgfe_from_reconstruction(
            *tensors,
            from_logits=from_logits,
            valid_size=valid_size,
            with_mse=with_mse,
            resize=resize,
            surrogate=surrogate,
            alpha=alpha,
        )
    if image.requires_grad and torch.is_grad_enabled():
        difference, mse = reconstruction_difference(
            reconstruction, image, from_logits=from_logits, valid_size=valid_size
        )
        enhanced = dgfe(features, difference, threshold, *mlp, resize=resize, surrogate=surrogate, alpha=alpha)
    else:
        enhanced, mse, *_ = torch.ops.srtod.dgfe_from_reconstruction(
            *tensors, from_logits, valid_size, with_mse, *codes
        )
    return enhanced, mse if with_mse else None


@register_fake("dgfe_from_reconstruction")
def _(
    features: Tensor,
    reconstruction: Tensor,
    image: Tensor,
    threshold: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    from_logits: bool,
    valid_size: Tensor | None,
    with_mse: bool,
    resize: int,
    surrogate: int,
    alpha: float,
) -> tuple[Tensor, ...]:
    mse = image.new_empty(() if with_mse else (0,), dtype=reference.compute_dtype(image.dtype))
    return empty_like(features), mse, _fake_filter(features), *fake_pooled(features)


def _setup_dgfe_from_reconstruction(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, reconstruction, image, threshold, weight1, bias1, weight2, _, *options = inputs
    ctx.from_logits, valid_size, with_mse, *ctx.codes = options
    _, mse, *kept = output
    ctx.mark_non_differentiable(*kept, *(() if with_mse else (mse,)))
    ctx.set_materialize_grads(False)
    maps = (features, reconstruction, image)
    ctx.save_for_backward(*maps, threshold, *kept, weight1, bias1, weight2, valid_size)


@register_autograd("dgfe_from_reconstruction", _setup_dgfe_from_reconstruction)
def _dgfe_from_reconstruction_backward(
    ctx: Any, grad: Tensor | None, grad_mse: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:
    needs_reconstruction = ctx.needs_input_grad[1]
    *saved, valid_size = ctx.saved_tensors
    if grad is None:
        grad = torch.zeros_like(saved[0])
    grad_features, grad_reconstruction, *others = torch.ops.srtod._dgfe_from_reconstruction_backward(
        grad, grad_mse, *saved, ctx.from_logits, valid_size, *ctx.codes, needs_reconstruction
    )
    for_images = (grad_reconstruction if needs_reconstruction else None, None)
    return grad_features, *for_images, *others, *[None] * 6  # no gradients for the six options


@register_fake("_dgfe_from_reconstruction_backward")
def _(
    grad: Tensor,
    grad_mse: Tensor | None,
    features: Tensor,
    reconstruction: Tensor,
    image: Tensor,
    threshold: Tensor,
    filter_: Tensor,
    channel_weight: Tensor,
    average: Tensor,
    maximum: Tensor,
    argmax: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    from_logits: bool,
    valid_size: Tensor | None,
    resize: int,
    surrogate: int,
    alpha: float,
    reconstruction_grad: bool,
) -> tuple[Tensor, ...]:
    return (
        empty_like(features),
        empty_like(reconstruction) if reconstruction_grad else reconstruction.new_empty((0,)),
        threshold.new_empty(()),
        *fake_mlp_gradients(weight1, weight2),
    )


register_once_differentiable("_dgfe_from_reconstruction_backward")


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
        self, channels: int, reduction: int = 16, *, inplace: bool = False, identity_start: bool = True, **options: Any
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
        return dgfe(features, difference, self.threshold, *mlp, **self.step_options)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, inplace={self.inplace}"


def _check(
    op: str,
    features: Tensor,
    threshold: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    **guides: Tensor,
) -> None:
    """`guides` tell where to enhance: `difference`, or `reconstruction` and `image`."""
    mlp = {"weight1": weight1, "bias1": bias1, "weight2": weight2, "bias2": bias2}
    check_floating(op, features=features, **guides, threshold=threshold, **mlp)
    check_shape(op, "features", features, "[N, C, h, w]", None, None, None, None)
    batch = features.shape[0]
    name, channels = ("difference", 1) if "difference" in guides else ("image", None)
    guide, shape = guides[name], (batch, channels, None, None)
    check_shape(op, name, guide, lambda: f"[{batch}, {channels or 'C'}, H, W], the features' batch of {batch}", *shape)
    check_threshold(op, threshold)
    check_mlp(op, features, **mlp)
    if (features.dtype == torch.float64) != (guide.dtype == torch.float64):
        raise TypeError(
            f"{op}: features and {name} must both be float64 or neither, got {features.dtype} and {guide.dtype}"
        )
