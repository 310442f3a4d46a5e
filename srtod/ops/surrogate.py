"""Surrogate gradients of the step function, and the resize modes: the words shared by every op that filters.

The filter's step `(sign(u) + 1) / 2` of `u = difference - threshold` has zero gradient everywhere, so a threshold
behind it cannot learn. A surrogate keeps the exact step in the forward pass and uses the derivative `g'(u)` of a smooth
*primitive* `g(u)` in the backward pass. Formulas: `srtod.ops.reference` (Python) and `csrc/scalar_math.h` (C++, CUDA).
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

Surrogate: TypeAlias = Literal["none", "ste", "sigmoid", "atan", "triangle", "rect"]
Resize: TypeAlias = Literal["nearest", "max", "area", "bilinear"]

SURROGATES: tuple[str, ...] = get_args(Surrogate)
"""In the order of `enum class Surrogate` in csrc/scalar_math.h."""

RESIZES: tuple[str, ...] = get_args(Resize)
"""In the order of `enum class Resize` in csrc/scalar_math.h."""

DEFAULT_ALPHA = {"none": 1.0, "ste": 1.0, "sigmoid": 112.0, "atan": 41.0, "triangle": 32.0, "rect": 32.0}
"""Sharpness at which g' falls to half its peak at |u| = 4/255 (for rect: to zero). Differences of well reconstructed
images are 0.01-0.05, so the alphas of spiking-network libraries (1-4, made for inputs of size 1) would be 30-100 times
too wide."""


def surrogate_code(surrogate: str) -> int:
    """Index of `surrogate` for the compiled ops.

    Raises:
        ValueError: If the name is unknown.
    """
    return _index_of(surrogate, SURROGATES, "surrogate")


def resize_code(resize: str) -> int:
    """Index of `resize` for the compiled ops.

    Raises:
        ValueError: If the name is unknown.
    """
    return _index_of(resize, RESIZES, "resize")


def resolve_alpha(surrogate: str, alpha: float | None) -> float:
    """The given `alpha`, or the surrogate's default.

    Raises:
        ValueError: If `alpha` is not a positive, finite number.
    """
    if alpha is None:
        return DEFAULT_ALPHA[surrogate]
    if not 0.0 < alpha < float("inf"):
        raise ValueError(f"alpha must be a positive finite number, got {alpha}")
    return float(alpha)


def _index_of(name: str, names: tuple[str, ...], what: str) -> int:
    if name not in names:
        raise ValueError(f"{what} must be one of {', '.join(names)}, got {name!r}")
    return names.index(name)
