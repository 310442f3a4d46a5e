"""A transposed convolution and the 3x3 convolution behind it as one convolution: what `Up` computes in training."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from srtod.ops.reference import compute_dtype

__all__ = ["composed", "is_cheaper", "relu_"]


def composed(transpose: nn.ConvTranspose2d, conv: nn.Conv2d, x: Tensor) -> Tensor:
    """`ReLU(conv(transpose(x)))` without the map between the two, `[N, C, H, W]` to `[N, D, 2H, 2W]`.

    Both are linear, so that a 3x3 convolution to four times the channels, the pixels of each 2x2 block, does the work
    of both. Only the outermost pixels differ, where `conv` sees zeros instead of what the transposed convolution would
    continue with: they are computed in two steps, from the two outermost rows and columns. The result is that of the
    two steps up to rounding, and so are the gradients; what autograd keeps for the backward pass is `x` and the result.

    Args:
        transpose: kernel 4, stride 2, padding 1, with a bias.
        conv: kernel 3, padding 1, without a bias.
        x: `[N, C, H, W]`.
    """
    x, *edges = _Edges.apply(x)
    top, bottom, left, right = (conv(transpose(edge)) for edge in edges)
    weight, bias = _compose(transpose, conv)
    phases = F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), padding=1)
    out: Tensor = _Interleave.apply(phases, top[:, :, :1], bottom[:, :, -1:], left[..., :1], right[..., -1:])
    return out


def relu_(x: Tensor) -> Tensor:
    """ReLU in place, whose backward pass masks the gradient in place too: a map less where memory is highest.

    Only for an `x` that a convolution has just made, and a result that one convolution alone will read.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return F.relu(x, inplace=True)
    out: Tensor = _ReLU.apply(x)
    return out


def is_cheaper(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether composing the weights costs less than a sixteenth of the convolution with them."""
    return len(x) * x.shape[2] * x.shape[3] >= 16 * 9 * conv.in_channels


def _compose(transpose: nn.ConvTranspose2d, conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight `[4 * D, C, 3, 3]` and bias `[4 * D]`; a channel is (row of the 2x2 block, column, channel of D)."""
    first, second = transpose.weight, conv.weight
    dtype = compute_dtype(first.dtype)
    with torch.autocast(first.device.type, enabled=False):
        first, second = first.to(dtype), second.to(dtype)
        # Output pixel o takes from input pixel i with kernel[o - 2 i + 2], o - 2 i being -2 to 3: of the output pixels
        # 2 m + p, p = 0 or 1, taps 4 + p, 2 + p and p go to the inputs m - 1, m and m + 1.
        kernel = F.conv2d(first, second, padding=2)  # [C, D, 6, 6]
        kernel = kernel.unflatten(3, (3, 2)).unflatten(2, (3, 2)).flip(2, 4)  # [C, D, 3, row, 3, column]
        weight = kernel.permute(3, 5, 1, 2, 4, 0).flatten(0, 2).permute(0, 3, 1, 2)  # channels_last
        assert transpose.bias is not None
        bias = (second.sum(dim=(2, 3)) @ transpose.bias.to(dtype)).repeat(4)
    return weight, bias


class _Edges(torch.autograd.Function):
    """`x` and its two outermost rows and columns on each side: top, bottom, left and right.

    Slices would do, but for each of them autograd would add up a gradient of the whole map's size.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return (torch.ops.aten.alias(x), *(x[edge].clone() for edge in _OUTERMOST_TWO))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *grads: Tensor) -> Tensor:
        # In place: the gradient comes from the one convolution that reads x, and is nobody else's.
        for edge, part in zip(_OUTERMOST_TWO, grads, strict=True):
            grad[edge] += part
        return grad


class _ReLU(torch.autograd.Function):
    """ReLU that overwrites its input and the gradient of its output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x.relu_()
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        masked: Tensor = torch.ops.aten.threshold_backward.grad_input(grad, out, 0, grad_input=grad)
        return masked


class _Interleave(torch.autograd.Function):
    """ReLU of the four pixels of each 2x2 block put in their places, `[N, 4 * D, H, W]` to `[N, D, 2H, 2W]`.

    The outermost rows and columns come from elsewhere; corners are the rows'. Backward one pass does all, where
    autograd would make a map of this size for each of ReLU, pixel shuffle and the four assignments.
    """

    @staticmethod
    def forward(ctx: Any, phases: Tensor, *edges: Tensor) -> Tensor:
        n, channels, h, w = phases.shape
        out = phases.new_empty(n, 2 * h, 2 * w, channels // 4)
        _blocks(out).copy_(phases.permute(0, 2, 3, 1).reshape(n, h, w, 2, channels // 2))
        out = out.permute(0, 3, 1, 2)
        top, bottom, left, right = edges
        out[..., :1], out[..., -1:], out[:, :, :1], out[:, :, -1:] = left, right, top, bottom
        out.relu_()
        ctx.save_for_backward(out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        (out,) = ctx.saved_tensors
        n, channels, height, width = out.shape
        h, w = height // 2, width // 2
        blocks = grad.new_empty(n, h, w, 2, 2 * channels)
        torch.ops.aten.threshold_backward.grad_input(
            _blocks(grad.permute(0, 2, 3, 1)), _blocks(out.permute(0, 2, 3, 1)), 0, grad_input=blocks
        )
        blocks = blocks.reshape(n, h, w, 2, 2, channels)
        edges = []
        for row in (blocks[:, 0, :, 0], blocks[:, -1, :, 1]):  # of the output, the first and the last
            edges.append(row.reshape(n, 1, width, channels).permute(0, 3, 1, 2).clone())
            row.zero_()
        for column in (blocks[:, :, 0, :, 0], blocks[:, :, -1, :, 1]):  # their corners are zero by now
            edges.append(column.reshape(n, height, 1, channels).permute(0, 3, 1, 2).clone())
            column.zero_()
        return blocks.reshape(n, h, w, 4 * channels).permute(0, 3, 1, 2), *edges


def _blocks(x: Tensor) -> Tensor:
    """Of `[N, 2H, 2W, D]` the 2x2 blocks, `[N, H, W, 2, 2 * D]`: a view where D and W adjoin in memory."""
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2 * channels).transpose(2, 3)


_ALL = slice(None)
_OUTERMOST_TWO = (
    (_ALL, _ALL, slice(2)),
    (_ALL, _ALL, slice(-2, None)),
    (_ALL, _ALL, _ALL, slice(2)),
    (_ALL, _ALL, _ALL, slice(-2, None)),
)
