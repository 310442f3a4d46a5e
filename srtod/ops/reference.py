"""Every op of `srtod.ops` in plain PyTorch: the specification.

The compiled ops must agree with these functions; tests and benchmarks import them. They run anywhere PyTorch runs and
are what `srtod.ops` calls where no compiled op exists. Arithmetic is done in float32 (float64 for float64 inputs)
whatever the storage type, and each result is rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .surrogate import resolve_alpha


def compute_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """The type that arithmetic is done in: float64 if any input has it, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


# --- difference map ---------------------------------------------------------------------------------------------------


def difference_map(reconstruction: Tensor, image: Tensor, *, from_logits: bool = False) -> Tensor:
    """See `srtod.ops.difference_map`."""
    signed = _signed_difference(reconstruction, image, from_logits)
    return mean_absolute(signed).to(torch.promote_types(reconstruction.dtype, image.dtype))


def reconstruction_difference(
    reconstruction: Tensor, image: Tensor, *, from_logits: bool = False, valid_size: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The difference map and the mean squared error (SR-TOD, Sec. 3.2). See `srtod.ops.reconstruction_difference`."""
    signed = _signed_difference(reconstruction, image, from_logits)
    difference = mean_absolute(signed).to(torch.promote_types(reconstruction.dtype, image.dtype))
    if valid_size is None:
        return difference, signed.square().mean()
    mask = valid_mask(valid_size, image.shape[2], image.shape[3])
    count = mask.sum() * image.shape[1]
    return difference, torch.where(mask, signed, 0).square().sum() / count


def high_frequency_difference_map(
    reconstruction: Tensor,
    image: Tensor,
    *,
    cutoff: float,
    from_logits: bool = False,
    valid_size: Tensor | None = None,
) -> Tensor:
    """`mean_channel(abs(HighPass(I_r) - HighPass(I_o)))` (SR-TOD, Sec. 4.4, Tab. 7).

    See `srtod.ops.high_frequency_difference_map`.
    """
    dtype = compute_dtype(reconstruction.dtype, image.dtype)
    rebuilt, real = reconstruction.to(dtype), image.to(dtype)
    if from_logits:
        rebuilt = rebuilt.sigmoid()
    if valid_size is not None:
        rebuilt = torch.where(valid_mask(valid_size, image.shape[2], image.shape[3]), rebuilt, real)
    high = high_pass(rebuilt, cutoff) - high_pass(real, cutoff)
    return mean_absolute(high).to(torch.promote_types(reconstruction.dtype, image.dtype))


def high_pass(x: Tensor, cutoff: float) -> Tensor:
    """Each channel of `x` `[N, C, H, W]` without its frequencies of a radius below `cutoff` (cycles per pixel)."""
    height, width = x.shape[-2:]
    if x.shape[0] == 0:  # which not every FFT library takes
        return x
    # The spectrum of a real signal is symmetric: half of its columns hold all of it.
    rows = torch.fft.fftfreq(height, dtype=x.dtype, device=x.device).square()
    columns = torch.fft.rfftfreq(width, dtype=x.dtype, device=x.device).square()
    # A frequency at the cutoff passes, though k / H may be rounded to just below it.
    passes = (rows[:, None] + columns).sqrt() >= cutoff * (1 - 1e-6)
    spectrum = torch.fft.rfft2(x) * passes
    return torch.fft.irfft2(spectrum, s=(height, width))


def valid_mask(valid_size: Tensor, height: int, width: int) -> Tensor:
    """Bool `[N, 1, H, W]`: true in the top-left `valid_size[n] = (height, width)` part of an image, not in padding."""
    size = valid_size.reshape(-1, 2, 1, 1, 1)
    rows = torch.arange(height, device=valid_size.device).reshape(1, 1, -1, 1)
    columns = torch.arange(width, device=valid_size.device).reshape(1, 1, 1, -1)
    return (rows < size[:, 0]) & (columns < size[:, 1])


def mean_absolute(signed: Tensor) -> Tensor:
    """`D = mean_channel(abs(I_r - I_o))` of `I_r - I_o` (SR-TOD, Eq. 3)."""
    absolute = signed * sign(signed.detach())  # the slope of torch.abs is 0 at NaN
    return absolute.mean(dim=1, keepdim=True)


def _signed_difference(reconstruction: Tensor, image: Tensor, from_logits: bool) -> Tensor:
    dtype = compute_dtype(reconstruction.dtype, image.dtype)
    reconstruction = reconstruction.to(dtype)
    if from_logits:
        reconstruction = reconstruction.sigmoid()
    return reconstruction - image.to(dtype)


# --- filtration -------------------------------------------------------------------------------------------------------


def sign(u: Tensor) -> Tensor:
    """-1 below zero, 0 at zero, 1 above; NaN at NaN, where `torch.sign` is 0."""
    return torch.where(u.isnan(), u, u.sign())


def step(u: Tensor) -> Tensor:
    """`(sign(u) + 1) / 2`: 0 below zero, 1 above, 0.5 at zero, NaN at NaN."""
    return (sign(u) + 1) * 0.5


def primitive(u: Tensor, surrogate: str, alpha: float | None = None) -> Tensor:
    """The smooth function `g(u)` whose derivative stands in for the step's."""
    a = resolve_alpha(surrogate, alpha)
    if surrogate == "none":
        return torch.zeros_like(u)
    if surrogate == "ste":
        return u
    if surrogate == "sigmoid":
        return torch.sigmoid(a * u)
    if surrogate == "atan":
        return torch.atan(math.pi / 2 * a * u) / math.pi + 0.5
    if surrogate == "triangle":
        v = (a * u).clamp(-1, 1)
        return 0.5 + v - 0.5 * v * v.abs()
    return (a * u + 0.5).clamp(0, 1)  # rect


def surrogate_derivative(u: Tensor, surrogate: str, alpha: float | None = None) -> Tensor:
    """`g'(u)`, the derivative of `primitive`."""
    a = resolve_alpha(surrogate, alpha)
    if surrogate == "none":
        return torch.zeros_like(u)
    if surrogate == "ste":
        return torch.ones_like(u)
    if surrogate == "sigmoid":
        s = torch.sigmoid(-a * u.abs())  # symmetric in u; this side keeps the precision of 1 - s
        return a * s * (1 - s)
    if surrogate == "atan":
        return (a / 2) / (1 + (math.pi / 2 * a * u).square())
    if surrogate == "triangle":
        return (a - a * a * u.abs()).clamp(min=0)
    return torch.where(u.isnan(), u, torch.where(u.abs() < 0.5 / a, a, 0.0).to(u.dtype))  # rect


class _SurrogateStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u: Tensor, surrogate: str, alpha: float) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(u)
        ctx.surrogate, ctx.alpha = surrogate, alpha
        return step(u)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        (u,) = ctx.saved_tensors
        if ctx.surrogate == "none":
            return torch.zeros_like(grad), None, None
        return grad * surrogate_derivative(u, ctx.surrogate, ctx.alpha), None, None


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
    """See `srtod.ops.filtration`."""
    filter_ = _filter(difference, threshold, size, resize, surrogate, alpha, difference_gradient)
    return filter_.to(difference.dtype)


def _filter(
    difference: Tensor,
    threshold: Tensor,
    size: tuple[int, int],
    resize: str,
    surrogate: str,
    alpha: float | None,
    difference_gradient: bool,
) -> Tensor:
    """`Resize((sign(D - t) + 1) / 2) + 1`, not rounded (SR-TOD, Eq. 4)."""
    if not difference_gradient:
        difference = difference.detach()
    alpha = resolve_alpha(surrogate, alpha)
    dtype = compute_dtype(difference.dtype)
    d, t = difference.to(dtype), threshold.to(dtype)

    def binarised(u: Tensor) -> Tensor:
        result: Tensor = _SurrogateStep.apply(u, surrogate, alpha)
        return result

    if resize == "nearest":  # commutes with the step: look only at the pixels that are kept
        return binarised(nearest(d, size) - t) + 1
    if resize == "max":  # the step is monotonic, so the greatest of the steps is the step of the greatest difference
        return binarised(F.adaptive_max_pool2d(d, size) - t) + 1
    if resize == "area":
        return F.adaptive_avg_pool2d(binarised(d - t), size) + 1
    filter_ = d.new_ones((d.shape[0], 1, *size))
    for values, weights in bilinear_corners(d, size):  # what counts nothing is not looked at
        counts = weights > 0
        filter_ = filter_ + torch.where(counts, weights * binarised(torch.where(counts, values - t, 0)), 0)
    return filter_


def nearest_index(output_size: int, input_size: int, device: torch.device | None = None) -> Tensor:
    """Source index of each output position under `F.interpolate(mode="nearest")`: float32 scale, floor, clamp."""
    # As the factor of a float32 tensor the scale is rounded to float32. This is the quotient of PyTorch's float32
    # division, which rounds once: Python's float64 has more than twice the digits, so rounding twice changes nothing.
    scale = input_size / max(output_size, 1)
    index = (torch.arange(output_size, dtype=torch.float32, device=device) * scale).long()
    return index.clamp(max=input_size - 1)


def nearest(x: Tensor, size: tuple[int, int]) -> Tensor:
    """`F.interpolate(x, size, mode="nearest")` of `[N, C, H, W]`, taking the same pixels in every dtype."""
    if x.dtype == torch.float64:  # F.interpolate would take a float64 scale, and now and then another pixel
        rows = nearest_index(size[0], x.shape[2], x.device)
        columns = nearest_index(size[1], x.shape[3], x.device)
        return x[:, :, rows][:, :, :, columns]
    return F.interpolate(x, size=size, mode="nearest")


def bilinear_corners(x: Tensor, size: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:
    """The four values `[N, C, h, w]` that each pixel of `F.interpolate(x, size, mode="bilinear")` mixes.

    With their weights `[h, w]`; a weight may be 0.
    """
    rows, columns = (_axis_corners(o, i, x) for o, i in zip(size, x.shape[2:], strict=True))
    for row, row_weight in rows:
        for column, column_weight in columns:
            yield x[:, :, row][:, :, :, column], row_weight[:, None] * column_weight


def _axis_corners(output_size: int, input_size: int, like: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Indices and weights of both neighbours; pixel centres lie at half integers, past the last is only it."""
    position = torch.arange(output_size, dtype=like.dtype, device=like.device) + 0.5
    source = (position * (input_size / output_size) - 0.5).clamp(min=0)
    low = source.long().clamp(max=input_size - 1)
    high = (low + 1).clamp(max=input_size - 1)
    fraction = torch.where(high == low, 0, source - low).clamp(max=1)
    return [(low, 1 - fraction), (high, fraction)]


# --- channel reweighting and DGFE -------------------------------------------------------------------------------------


def channel_reweighting(features: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """See `srtod.ops.channel_reweighting`."""
    return _channel_weight(features, weight1, bias1, weight2, bias2).to(features.dtype)


def _channel_weight(features: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """`sigmoid(MLP(avgpool(P2)) + MLP(maxpool(P2)))`, not rounded (SR-TOD, Eq. 5)."""
    dtype = compute_dtype(features.dtype)
    x = features.to(dtype)
    average = F.adaptive_avg_pool2d(x, 1).flatten(1)
    maximum = F.adaptive_max_pool2d(x, 1).flatten(1)
    w1, b1, w2, b2 = (p.to(dtype) for p in (weight1, bias1, weight2, bias2))

    with torch.autocast(features.device.type, enabled=False):  # it would take the MLP to bfloat16
        hidden = F.linear(average, w1, b1).relu() + F.linear(maximum, w1, b1).relu()
        return F.linear(hidden, w2, 2 * b2).sigmoid()[:, :, None, None]  # linear: both MLPs' second layers at once


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
    """`Reweighting(P2) * Filtration(D) * P2` (SR-TOD, Eq. 6). See `srtod.ops.dgfe`."""
    dtype = compute_dtype(features.dtype)
    weight = _channel_weight(features, weight1, bias1, weight2, bias2)
    size = (features.shape[2], features.shape[3])
    filter_ = _filter(difference, threshold, size, resize, surrogate, alpha, difference_gradient).to(dtype)
    return (features.to(dtype) * (weight * filter_)).to(features.dtype)


# --- 3x3 convolution --------------------------------------------------------------------------------------------------


def conv3x3(features: Tensor, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """See `srtod.ops.conv3x3`."""
    result = F.conv2d(features, weight, bias, padding=1)
    return F.relu(result, inplace=True) if relu else result
