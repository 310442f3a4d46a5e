"""The difference map at the pixels that a nearest resize takes, and at no others (SR-TOD, Sec. 3.2 and 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference
from ._checks import check_floating, check_shape
from ._extension import runs_fused
from ._registration import register_fake, register_not_differentiable
from .reconstruction_tail import check_output_convolution


def sampled_difference_map(features: Sequence[Tensor], weight: Tensor, bias: Tensor, image: Tensor) -> Tensor:
    """What `Filtration` sees of the difference map when it resizes it by nearest neighbour (SR-TOD, Eq. 3 and 4).

    From the last feature map of the reconstruction head around these pixels alone: `logits = Conv3x3(features)`, padded
    by one zero, `I_r = sigmoid(logits)` (Eq. 2) and `D = mean_c |I_r - I_o|` (Eq. 3) at one pixel in 16, for P2. The
    same as `F.interpolate(reconstruction_tail(...)[0], (h, w))`, but that the whole map of a half-precision image is
    rounded to the image's dtype, and this one is not. For inference: there is no gradient, and where one is recorded
    for an input the plain PyTorch of `reference` runs, which has one.

    Args:
        features: three maps `[N, C, h, W]`, where `H = s h` and `W = s w` with a whole number s: row i of map k is row
            `s i + k - 1` of the last feature map, zero above its first row. Or, for images of any size, nine maps
            `[N, C, h, w]`: map `3 k + l` has the pixels one row above (k = 0), in or below (k = 2) and one column left
            of (l = 0), in or right of (l = 2) the samples' places, zero outside the feature map.
        weight: `[3, C, 3, 3]`, any floating-point dtype.
        bias: `[3]`, the weight's dtype.
        image: `[N, 3, H, W]`, the real image in [0, 1]. Its dtype is the features', or any of float16, bfloat16 and
            float32 beside another of these.

    Returns:
        `[N, 1, h, w]` in [0, 1], in float32 (float64 for float64 images), also for half-precision images: so it
        compares with the threshold as a whole map in float32 does. Maps and image of any strides are read in place.

    Raises:
        TypeError: If an argument is not a floating-point tensor, or dtypes do not go together.
        ValueError: If the number of maps, shapes or devices do not fit.
    """
    features = list(features)
    _check(features, weight, bias, image)
    recorded = torch.is_grad_enabled() and any(x.requires_grad for x in (*features, weight, bias, image))
    if recorded or not runs_fused(image):
        return reference.sampled_difference_map(features, weight, bias, image)
    result: Tensor = torch.ops.srtod.sampled_difference_map(features, weight, bias, image)
    return result


@register_fake("sampled_difference_map")
def _(features: Sequence[Tensor], weight: Tensor, bias: Tensor, image: Tensor) -> Tensor:
    _, _, height, width = features[0].shape
    if len(features) == 3:
        width = width // (image.shape[2] // height)
    return image.new_empty((image.shape[0], 1, height, width), dtype=reference.compute_dtype(image.dtype))


register_not_differentiable("sampled_difference_map")


def _check(features: Sequence[Tensor], weight: Tensor, bias: Tensor, image: Tensor) -> None:
    op = "sampled_difference_map"
    if len(features) not in (3, 9):
        raise ValueError(
            f"{op}: features must be three maps (rows around the samples) or nine (pixels around them), "
            f"got {len(features)}"
        )
    check_floating(op, **{f"features[{k}]": x for k, x in enumerate(features)})
    check_shape(op, "features[0]", features[0], "[N, C, h, w]", None, None, None, None)
    shape = list(features[0].shape)
    for k, x in enumerate(features):
        check_shape(op, f"features[{k}]", x, lambda: f"{shape}, that of features[0]", *shape)
        if x.dtype != features[0].dtype:
            raise TypeError(
                f"{op}: features[{k}] must have the dtype of features[0], {features[0].dtype}, got {x.dtype}"
            )
    check_output_convolution(op, features[0], weight, bias, image)
    if len(features) == 9:
        return
    (_, _, rows, columns), (height, width) = shape, image.shape[2:]
    if columns != width or height % rows or width % (height // rows):
        raise ValueError(
            f"{op}: three maps must have one row for every s rows of the image, and its width, where s divides height "
            f"and width of the image; got features[0] {shape} for an image of {[height, width]}; "
            "nine maps go with any image"
        )
