"""Checks of what users pass to the ops: one sentence naming the op, the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor

TO_UNIT_RANGE = "images in 0..255 go to [0, 1] by `.float() / 255`"
SAMPLES = 16  # rows and columns of an image


def check_floating(op: str, **tensors: Tensor) -> None:
    """Each argument is a floating-point tensor, and all are on the first one's device.

    Raises:
        TypeError: If an argument is no tensor, or not float16, bfloat16, float32 or float64.
        ValueError: If the devices differ.
    """
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            cure = f"; {TO_UNIT_RANGE}" if tensor.dtype == torch.uint8 else ""
            raise TypeError(f"{op}: {name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}{cure}")
        if tensor.device != first.device:
            raise ValueError(
                f"{op}: {name} is on {tensor.device}, but {first_name} is on {first.device}; move both to one device"
            )


def check_shape(op: str, name: str, tensor: Tensor, expected: str | Callable[[], str], *sizes: int | None) -> None:
    """The tensor has the given sizes, `None` standing for any; only the first dimension may be empty.

    `expected` says so in words; where it names sizes it is a function, as formatting them would make `torch.compile`
    specialise on them.

    Raises:
        ValueError: If not.
    """
    if tensor.dim() != len(sizes):
        _refuse(op, name, tensor, expected)
    for dim, size in enumerate(sizes):
        if size is not None and tensor.shape[dim] != size:
            _refuse(op, name, tensor, expected)
        if dim > 0 and tensor.shape[dim] == 0:
            _refuse(op, name, tensor, expected, " with at least one element in every dimension but N")


def check_unit_range(op: str, image: Tensor) -> None:
    """The image [N, C, H, W] is neither in 0..255 nor normalised: a sample of its pixels holds no value in (1, 65535].

    To read all of them would take half as long as the op. NaN, infinity and larger values are no other unit; they pass,
    see `srtod.ops`. Asked on the CPU only: an accelerator's queue would have to drain, and a traced graph cannot tell.

    Raises:
        ValueError: If it is.
    """
    if image.device.type != "cpu" or image.numel() == 0 or torch.compiler.is_compiling():
        return
    height, width = image.shape[2:]
    greatest = float(image.detach()[:, :, :: -(-height // SAMPLES), :: -(-width // SAMPLES)].amax())
    if 1 + 1e-3 < greatest <= 65535:  # resampling may overshoot a little
        raise ValueError(f"{op}: image must lie in [0, 1], got values up to {greatest:.5g}; {TO_UNIT_RANGE}")


def check_threshold(op: str, threshold: Tensor) -> None:
    """The threshold is a 0-d tensor.

    Raises:
        ValueError: If it has dimensions.
    """
    if threshold.dim() != 0:
        raise ValueError(
            f"{op}: threshold must be a scalar (0-d) tensor such as torch.tensor(4 / 255), "
            f"got shape {list(threshold.shape)}"
        )


def check_mlp(op: str, features: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> None:
    """The shared MLP C -> R -> C fits the features [N, C, h, w].

    Raises:
        TypeError: If its four tensors differ in type.
        ValueError: If a shape does not fit.
    """
    channels = features.shape[1]
    check_shape(op, "weight1", weight1, lambda: f"[R, {channels}] for features of {channels} channels", None, channels)
    hidden = weight1.shape[0]
    check_shape(op, "bias1", bias1, lambda: f"[{hidden}]", hidden)
    check_shape(op, "weight2", weight2, lambda: f"[{channels}, {hidden}]", channels, hidden)
    check_shape(op, "bias2", bias2, lambda: f"[{channels}]", channels)
    if not weight1.dtype == bias1.dtype == weight2.dtype == bias2.dtype:
        raise TypeError(
            f"{op}: the MLP's weights and biases must share one dtype, "
            f"got {weight1.dtype}, {bias1.dtype}, {weight2.dtype} and {bias2.dtype}"
        )


def memory_format_of(tensor: Tensor) -> torch.memory_format:
    """The layout that a compiled op computes in: channels_last if the tensor has that only, else contiguous."""
    if not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def empty_like(tensor: Tensor) -> Tensor:
    """What a compiled op returns for a map like `tensor`: same shape and type, in `memory_format_of(tensor)`."""
    return torch.empty_like(tensor, memory_format=memory_format_of(tensor))


def _refuse(op: str, name: str, tensor: Tensor, expected: str | Callable[[], str], remark: str = "") -> NoReturn:
    words = expected if isinstance(expected, str) else expected()
    raise ValueError(f"{op}: {name} must have shape {words}{remark}, got {list(tensor.shape)}")
