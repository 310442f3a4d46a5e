"""Difference maps and reconstruction error: where a rebuilt image differs from the real one (SR-TOD, Sec. 3.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import reference
from ._checks import check_floating, check_shape, check_unit_range, empty_like
from ._extension import runs_fused
from ._registration import register_autograd, register_fake, register_once_differentiable


def difference_map(reconstruction: Tensor, image: Tensor, *, from_logits: bool = False) -> Tensor:
    """Mean over the channels of the absolute difference, `D = mean_c |I_r - I_o|` (SR-TOD, Eq. 3).

    Args:
        reconstruction: `[N, C, H, W]`, the rebuilt image in [0, 1], or its logits if `from_logits`.
        image: `[N, C, H, W]`, the real image in [0, 1] (not normalised by mean and deviation). Its dtype is the
            reconstruction's, or float32 beside a half-precision reconstruction.
        from_logits: Take the sigmoid of `reconstruction` first, in float32.

    Returns:
        `[N, 1, H, W]` in [0, 1], in the image's dtype. Any strides are read in place; the gradient at a difference of
        zero is zero.

    Raises:
        TypeError: If an argument is not a floating-point tensor, or the dtypes do not go together.
        ValueError: If shapes or devices differ, or the image is in 0..255. The latter is asked on the CPU only; CUDA
            computes with any values.
    """
    _check_image_pair("difference_map", reconstruction, image)
    if not runs_fused(image):
        return reference.difference_map(reconstruction, image, from_logits=from_logits)
    result: Tensor = torch.ops.srtod.difference_map(reconstruction, image, from_logits)
    return result


@register_fake("difference_map")
def _(reconstruction: Tensor, image: Tensor, from_logits: bool) -> Tensor:
    return image.new_empty((image.shape[0], 1, image.shape[2], image.shape[3]))


def _setup_difference_map(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    reconstruction, image, ctx.from_logits = inputs
    ctx.save_for_backward(reconstruction, image)


@register_autograd("difference_map", _setup_difference_map)
def _difference_map_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    reconstruction, image = ctx.saved_tensors
    return *_images_backward(ctx.needs_input_grad, grad, None, reconstruction, image, ctx.from_logits, None), None


def reconstruction_difference(
    reconstruction: Tensor, image: Tensor, *, from_logits: bool = False, valid_size: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The difference map and the reconstruction loss from one pass over both images (SR-TOD, Sec. 3.2).

    Args:
        reconstruction: `[N, C, H, W]`, the rebuilt image in [0, 1], or its logits if `from_logits`.
        image: `[N, C, H, W]`, the real image in [0, 1]. Its dtype is the reconstruction's, or float32 beside a
            half-precision reconstruction.
        from_logits: Take the sigmoid of `reconstruction` first, in float32.
        valid_size: int64 `[N, 2]`, the (height, width) in pixels of each image's top-left part that is not padding:
            the loss is the mean over these parts. Without it all pixels count, as in the paper's release.

    Returns:
        The difference map `[N, 1, H, W]` in the image's dtype (padding included), and the mean squared error, a 0-d
        float32 tensor (float64 for float64 images).

    Raises:
        TypeError: If an image is not a floating-point tensor, dtypes do not go together or valid_size is not int64.
        ValueError: As `difference_map`.
    """
    _check_image_pair("reconstruction_difference", reconstruction, image, valid_size)
    if not runs_fused(image):
        return reference.reconstruction_difference(
            reconstruction, image, from_logits=from_logits, valid_size=valid_size
        )
    difference, mse = torch.ops.srtod.reconstruction_difference(reconstruction, image, from_logits, valid_size)
    return difference, mse


@register_fake("reconstruction_difference")
def _(reconstruction: Tensor, image: Tensor, from_logits: bool, valid_size: Tensor | None) -> tuple[Tensor, Tensor]:
    difference = image.new_empty((image.shape[0], 1, image.shape[2], image.shape[3]))
    return difference, image.new_empty((), dtype=reference.compute_dtype(image.dtype))


def _setup_reconstruction_difference(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    reconstruction, image, ctx.from_logits, valid_size = inputs
    ctx.save_for_backward(reconstruction, image, valid_size)
    ctx.set_materialize_grads(False)


@register_autograd("reconstruction_difference", _setup_reconstruction_difference)
def _reconstruction_difference_backward(
    ctx: Any, grad_difference: Tensor | None, grad_mse: Tensor | None
) -> tuple[Tensor | None, Tensor | None, None, None]:
    reconstruction, image, valid_size = ctx.saved_tensors
    gradients = _images_backward(
        ctx.needs_input_grad, grad_difference, grad_mse, reconstruction, image, ctx.from_logits, valid_size
    )
    return *gradients, None, None


def _images_backward(
    needed: tuple[bool, ...],
    grad_difference: Tensor | None,
    grad_mse: Tensor | None,
    reconstruction: Tensor,
    image: Tensor,
    from_logits: bool,
    valid_size: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients, if `needed`, of reconstruction and image from those of the difference map and the mean error."""
    backward = torch.ops.srtod._reconstruction_difference_backward
    gradients = (grad_difference, grad_mse)
    grad_reconstruction = grad_image = None
    if needed[0]:
        grad_reconstruction = backward(*gradients, reconstruction, image, from_logits, valid_size)
    if needed[1]:  # both results depend on I_r - I_o alone
        dtype = reference.compute_dtype(image.dtype)
        rebuilt = reconstruction.to(dtype).sigmoid() if from_logits else reconstruction.to(dtype)
        grad_difference = None if grad_difference is None else grad_difference.to(dtype)
        grad_image = -backward(grad_difference, grad_mse, rebuilt, image.to(dtype), False, valid_size).to(image.dtype)
    return grad_reconstruction, grad_image


@register_fake("_reconstruction_difference_backward")
def _(
    grad_difference: Tensor | None,
    grad_mse: Tensor | None,
    reconstruction: Tensor,
    image: Tensor,
    from_logits: bool,
    valid_size: Tensor | None,
) -> Tensor:
    return empty_like(reconstruction)


register_once_differentiable("_reconstruction_difference_backward")


def high_frequency_difference_map(
    reconstruction: Tensor,
    image: Tensor,
    *,
    cutoff: float,
    from_logits: bool = False,
    valid_size: Tensor | None = None,
) -> Tensor:
    """The difference map of the images' high frequencies, `mean_c |HighPass(I_r) - HighPass(I_o)|` (SR-TOD, Tab. 7).

    "The fast Fourier transform algorithm to separate the high-frequency components of the original input image and the
    reconstructed image" (Sec. 4.4): edges, textures and objects of a few pixels, without what varies slowly. The paper
    gives no cutoff and no shape of the filter; this one is ideal, that is, it removes the frequencies below the cutoff
    and keeps all others as they are. It is linear, so `I_r - I_o` is filtered once here, which takes half the
    transforms of filtering both images. The transform takes the image for one period of a periodic signal: opposite
    borders adjoin.

    Plain PyTorch on every device, differentiable any number of times.

    Args:
        reconstruction: `[N, C, H, W]`, the rebuilt image in [0, 1], or its logits if `from_logits`.
        image: `[N, C, H, W]`, the real image in [0, 1]. Its dtype is the reconstruction's, or float32 beside a
            half-precision reconstruction.
        cutoff: Radius in the frequency plane below which frequencies are removed, in cycles per pixel, 0 to 0.5 (an
            axis' highest): waves longer than `1 / cutoff` pixels vanish. The mean always does for cutoff > 0; cutoff 0
            removes nothing and gives `difference_map`.
        from_logits: Take the sigmoid of `reconstruction` first, in float32.
        valid_size: int64 `[N, 2]`, the (height, width) in pixels of each image's top-left part that is not padding.
            The difference counts as zero elsewhere, because the filter would spread it into the image.

    Returns:
        `[N, 1, H, W]` in the image's dtype, computed in float32 (float64 for float64 images). Not negative; beside a
        sharp edge the filter overshoots, so single values may exceed 1.

    Raises:
        TypeError: If an image is not a floating-point tensor, dtypes do not go together or valid_size is not int64.
        ValueError: As `difference_map`, or if `cutoff` is not in [0, 0.5].
    """
    op = "high_frequency_difference_map"
    _check_image_pair(op, reconstruction, image, valid_size)
    if not 0.0 <= cutoff <= 0.5:
        raise ValueError(f"{op}: cutoff must be in [0, 0.5] cycles per pixel, such as 1 / 32, got {cutoff}")
    dtype = reference.compute_dtype(image.dtype)
    rebuilt = reconstruction.to(dtype)
    signed = (rebuilt.sigmoid() if from_logits else rebuilt) - image.to(dtype)
    if valid_size is not None:
        signed = torch.where(reference.valid_mask(valid_size, image.shape[2], image.shape[3]), signed, 0)
    return reference.mean_absolute(reference.high_pass(signed, cutoff)).to(image.dtype)


def _check_image_pair(op: str, reconstruction: Tensor, image: Tensor, valid_size: Tensor | None = None) -> None:
    """The images and the size of their valid parts go together, for every op that compares images.

    Raises:
        TypeError: If an image is not a floating-point tensor, dtypes do not go together or valid_size is not int64.
        ValueError: If shapes or devices differ, or, on the CPU, the image is in 0..255.
    """
    check_floating(op, reconstruction=reconstruction, image=image)
    check_shape(op, "image", image, "[N, C, H, W]", None, None, None, None)
    shape = list(image.shape)
    check_shape(op, "reconstruction", reconstruction, lambda: f"{shape}, the image's", *shape)
    half = reconstruction.dtype in (torch.float16, torch.bfloat16)
    if image.dtype != reconstruction.dtype and not (half and image.dtype == torch.float32):
        raise TypeError(
            f"{op}: image must have the reconstruction's dtype {reconstruction.dtype}"
            f"{' or float32' if half else ''}, got {image.dtype}"
        )
    check_unit_range(op, image)
    if valid_size is None:
        return
    if not isinstance(valid_size, Tensor):
        raise TypeError(f"{op}: valid_size must be a torch.Tensor, got {type(valid_size).__name__}")
    if valid_size.dtype != torch.int64:
        raise TypeError(f"{op}: valid_size must be int64, got {valid_size.dtype}")
    batch = image.shape[0]
    check_shape(op, "valid_size", valid_size, lambda: f"[{batch}, 2], (height, width)", batch, 2)
    if valid_size.device != image.device:
        raise ValueError(f"{op}: valid_size is on {valid_size.device}, but image is on {image.device}")
