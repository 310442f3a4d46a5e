"""The paper's head strip by strip, so that a training step needs the memory of a strip and not of the whole image."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Strip", "StripHead", "loss_in_strips", "strips"]

REACH = 3
"""How many rows of features the reconstruction of a row depends on beyond its own, in either direction."""

STRIP_PIXELS = {"cpu": 2**13, "cuda": 2**16}
"""Feature pixels of a strip, about: few enough to spare memory, enough to keep the cores of a GPU at work."""

MIN_ROWS = 32
"""Rows of features of a strip, at least: each computes up to 2 * REACH more."""

Measure = Callable[[Tensor, int], tuple[Tensor, Tensor]]


class Strip(NamedTuple):
    """Rows of a feature map, from `top` to `bottom`, and those that their reconstruction needs: `first` to `last`."""

    top: int
    bottom: int
    first: int
    last: int

    @classmethod
    def whole(cls, rows: int) -> Strip:
        return cls(0, rows, 0, rows)


class StripHead(Protocol):
    """A reconstruction head that can work in strips."""

    scale: int

    def predict_strip(self, features: Tensor, strip: Strip) -> Tensor: ...
    def parameters(self) -> Any: ...


def strips(features: Tensor) -> list[Strip]:
    """Cuts a feature map `[N, C, h, w]` into strips of about the same height."""
    n, _, h, w = features.shape
    count = max(1, min(round(n * h * w / STRIP_PIXELS.get(features.device.type, 2**16)), h // MIN_ROWS))
    edges = [h * index // count for index in range(count + 1)]
    return [
        Strip(top, bottom, max(top - REACH, 0), min(bottom + REACH, h)) for top, bottom in itertools.pairwise(edges)
    ]


def loss_in_strips(head: StripHead, features: Tensor, image: Tensor, measure: Measure) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, difference map and prediction of a head, whose gradients are computed at once, strip by strip.

    The loss's gradient needs nothing from later parts of the network but a factor. So each strip runs forwards and
    backwards and is forgotten: nothing is kept for the backward pass, and nothing is computed twice.

    Args:
        head: the reconstruction head.
        features: `[N, C, h, w]`.
        image: `[N, 3, H, W]`, `h = ceil(H / scale)`, `w = ceil(W / scale)`.
        measure: maps the prediction of some rows `[N, 3, rows, W]`, and the first of them, to their difference map
            `[N, 1, rows, W]` and their part of the loss `[]`.

    Returns:
        The loss `[]`, which alone carries a gradient, and only once; the difference map `[N, 1, H, W]`; and the
        prediction `[N, 3, H, W]`.
    """
    loss, difference, prediction = _LossInStrips.apply(head, image.shape, measure, features, *head.parameters())
    return loss, difference, prediction


class _LossInStrips(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, head: StripHead, shape: torch.Size, measure: Measure, features: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        needs_features, *needed = ctx.needs_input_grad[3:]
        trained = [parameter for parameter, is_needed in zip(parameters, needed, strict=True) if is_needed]
        of_features = torch.zeros_like(features) if needs_features else None
        of_trained = [torch.zeros_like(parameter) for parameter in trained]
        parts = []
        for strip in strips(features):
            rows = features[:, :, strip.first : strip.last].detach().requires_grad_(needs_features)
            with torch.enable_grad():
                prediction = head.predict_strip(rows, strip)[:, :, : shape[2] - head.scale * strip.top, : shape[3]]
                difference, loss = measure(prediction, head.scale * strip.top)
            if loss.requires_grad:
                gradients = torch.autograd.grad(loss, [rows, *trained] if needs_features else trained)
                if of_features is not None:
                    of_features[:, :, strip.first : strip.last] += gradients[0]
                if trained:
                    torch._foreach_add_(of_trained, gradients[-len(trained) :])
            parts.append((loss.detach(), difference.detach(), prediction.detach()))
        losses, differences, predictions = zip(*parts, strict=True)
        ctx.needed = needed
        ctx.save_for_backward(of_features, *of_trained)
        results = torch.stack(losses).sum(), torch.cat(differences, dim=2), torch.cat(predictions, dim=2)
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        of_features, *of_trained = ctx.saved_tensors
        scaled = iter(torch._foreach_mul(of_trained, grad) if of_trained else ())
        return (
            None,
            None,
            None,
            None if of_features is None else of_features * grad,
            *(next(scaled) if needed else None for needed in ctx.needed),
        )
