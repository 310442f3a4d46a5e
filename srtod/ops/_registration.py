"""Registers fake kernels and gradients of the compiled ops; does nothing where these are not loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ._extension import LOADED

F = TypeVar("F", bound=Callable[..., Any])


def register_fake(op: str) -> Callable[[F], F]:
    """Decorates the function that gives the shapes, types and strides of what `srtod::op` returns."""

    def register(fake: F) -> F:
        if LOADED:
            torch.library.register_fake(f"srtod::{op}", fake)
        return fake

    return register


def register_autograd(op: str, setup_context: Callable[..., None]) -> Callable[[F], F]:
    """Decorates the backward function of `srtod::op`; `setup_context` keeps what it needs of the forward pass."""

    def register(backward: F) -> F:
        if LOADED:
            torch.library.register_autograd(f"srtod::{op}", backward, setup_context=setup_context)
        return backward

    return register


def register_once_differentiable(op: str) -> None:
    """Makes the gradient of the backward op `srtod::op`, a second derivative, a clear error."""

    def refuse(*_: Any) -> None:
        raise RuntimeError(
            f"srtod::{op} cannot be differentiated: srtod's fused ops have first derivatives only; for higher ones run "
            "them under `srtod.ops.use_reference()`"
        )

    if LOADED:
        torch.library.register_autograd(f"srtod::{op}", refuse)
