"""The threshold `t` of the filtration as a module's state: fixed, learned, or set by the share of pixels that pass."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from srtod._support.fields import check_values, option

from .filtration import filtration
from .surrogate import Resize, Surrogate, resolve_alpha

__all__ = ["DEFAULT_THRESHOLD", "FiltrationOptions", "Threshold"]

DEFAULT_THRESHOLD = 4 / 255
"""Four grey levels, the authors' value for VisDrone; they start at 3/255 for AI-TOD and 40/255 for DroneSwarms."""

NOTHING_PASSES = 1.0
"""A threshold that no difference of images in [0, 1] exceeds: the filter is 1 everywhere."""

MIN_STEPS = 50
"""Steps before a reconstruction can count as settled."""

FAST, SLOW = 0.9, 0.98
"""Decays of the two running quantiles whose agreement shows that the reconstruction has settled."""

SETTLED = 0.95
"""The ratio of the fast to the slow one from which it has: the error falls by less than 5 % in about 40 steps."""

MAX_SAMPLES = 2**16
"""Pixels of a batch that a quantile is taken from; of more, so many evenly spaced ones."""


@dataclass(frozen=True)
class FiltrationOptions:
    """How a difference map becomes a filter.

    Raises:
        ValueError: if a value is not one of its words or out of its range.
    """

    threshold: float | Literal["auto"] | None = option(
        DEFAULT_THRESHOLD,
        "threshold of the difference map, grey levels of [0, 1], such as 4/255; auto: found by pass-share; none: no "
        "threshold",
        within="share",
    )
    pass_share: float = option(0.1, "share of the pixels that the automatic threshold lets pass", within="inner")
    learn_threshold: bool | None = option(
        None,
        "train the threshold; an automatic one that is not trained follows pass-share through all of the training; "
        "none: a number is trained, an automatic one is not",
    )
    resize: Resize = option("nearest", "how the filter comes to the size of P2")
    surrogate: Surrogate = option(
        "sigmoid", "gradient of the threshold's step; none is the authors' code, where the threshold never learns"
    )
    alpha: float | None = option(
        None, "sharpness of the surrogate; none: one that suits a few grey levels", within="positive"
    )
    difference_gradient: bool = option(
        False,
        "let the surrogate's gradient reach the reconstruction too, which then learns to be wrong at the one pixel in "
        "16 that a nearest resize reads",
    )

    def __post_init__(self) -> None:
        check_values(self)


class Threshold(nn.Module):
    """What every module that filters has: the threshold `t` and the options of `srtod.ops.filtration`.

    `threshold="auto"` sets t by the data. Until the reconstruction has settled, t is 1 and the filter is 1 everywhere.
    Then t becomes the quantile of the difference map that lets `pass_share` of the pixels pass, and follows it while
    the module is in training mode. With `learn_threshold=True` it is set once and learns from there. Of several
    processes the mean of their quantiles counts. The state lies in buffers: checkpoints hold it.

    Args:
        options: fields of `FiltrationOptions`, by name.

    Attributes:
        threshold: t, `[]`, a parameter if it is learned; None without a threshold.

    Raises:
        TypeError: if an option is unknown.
        ValueError: if an option is not as `FiltrationOptions` says.
    """

    threshold: Tensor | None
    quantiles: Tensor
    steps: Tensor
    settled: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__()
        chosen = FiltrationOptions(**options)
        self.resize, self.surrogate = chosen.resize, chosen.surrogate
        self.alpha = resolve_alpha(chosen.surrogate, chosen.alpha)
        self.pass_share, self.difference_gradient = chosen.pass_share, chosen.difference_gradient
        self.is_auto = chosen.threshold == "auto"
        self.learns = not self.is_auto if chosen.learn_threshold is None else chosen.learn_threshold
        start = NOTHING_PASSES if chosen.threshold == "auto" else chosen.threshold
        if start is None:
            self.register_parameter("threshold", None)
        elif self.learns:
            self.threshold = nn.Parameter(torch.tensor(float(start)))
        else:
            self.register_buffer("threshold", torch.tensor(float(start)))
        if self.is_auto:
            self.register_buffer("quantiles", torch.zeros(2))  # the fast and the slow running quantile
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
            self.register_buffer("settled", torch.zeros((), dtype=torch.bool))

    @property
    def used_threshold(self) -> Tensor:
        """The threshold `[]` for one forward pass: a copy where another may set it before the backward pass of this."""
        assert self.threshold is not None
        return self.threshold.clone() if self.is_auto else self.threshold

    @property
    def step_options(self) -> dict[str, Any]:
        """The keywords of `srtod.ops.filtration` and `srtod.ops.dgfe`."""
        return {
            "resize": self.resize,
            "surrogate": self.surrogate,
            "alpha": self.alpha,
            "difference_gradient": self.difference_gradient,
        }

    def filter(self, difference: Tensor, size: tuple[int, int]) -> Tensor:
        """The filter of `size` (h, w) by a difference map `[N, 1, H, W]`: `[N, 1, h, w]`, see `srtod.ops.filtration`.

        Without a threshold it is `Resize(D) + 1`: our reading of the paper's Tab. 5, where the 1 of the filtration,
        which keeps the features where the map is zero, stays.
        """
        if self.threshold is not None:
            return filtration(difference, self.used_threshold, size, **self.step_options)
        return self.resized(difference, size) + 1

    def resized(self, difference: Tensor, size: tuple[int, int]) -> Tensor:
        """The difference map `[N, 1, H, W]` at `size` (h, w), `[N, 1, h, w]`, without its gradient unless asked for."""
        difference = difference if self.difference_gradient else difference.detach()
        if self.resize == "max":
            return F.adaptive_max_pool2d(difference, size)
        if self.resize == "area":
            return F.adaptive_avg_pool2d(difference, size)
        return F.interpolate(difference, size=size, mode=self.resize)

    @torch.no_grad()
    def clamp_threshold_(self) -> None:
        """Brings the threshold, if there is one, back into [0, 1]; call it after each optimizer step."""
        if self.threshold is not None:
            self.threshold.clamp_(0, 1)

    @torch.no_grad()
    def observe(self, difference: Tensor, size: tuple[int, int], valid: Tensor | None = None) -> None:
        """Brings an automatic threshold up to date; does nothing otherwise, or outside training.

        Args:
            difference: the difference map, `[N, 1, H, W]`.
            size: (h, w) of the level that it guides: its pixels count, as `resize` makes them.
            valid: which of them belong to images and not to padding, bool `[N, 1, h, w]`; None: all.
        """
        if not (self.is_auto and self.training):
            return
        samples = self.resized(difference.detach().float(), size)
        if valid is not None:
            samples = samples.where(valid, torch.nan)
        samples = samples.flatten()
        samples = samples[:: -(-len(samples) // MAX_SAMPLES)]
        # No look at the values from Python: on a GPU the queue would have to drain.
        quantile, seen = _over_processes(torch.nanquantile(samples, 1 - self.pass_share))
        self.steps += seen
        decay = torch.tensor([FAST, SLOW], device=quantile.device)
        share = (1 - decay) / (1 - decay ** self.steps.clamp(min=1))  # without the bias towards the zeros of the start
        self.quantiles += (seen * share) * (quantile - self.quantiles)
        fast, slow = self.quantiles
        settles = ~self.settled & (self.steps >= MIN_STEPS) & (fast >= SETTLED * slow)
        self._set(settles if self.learns else settles | self.settled)
        self.settled |= settles

    def settle(self) -> bool:
        """Sets an automatic threshold that has not settled yet by what was seen so far.

        Returns whether the threshold is set by now. Warns if too little was seen. Call it when a training has used up
        the time that it has for the threshold.
        """
        if not self.is_auto or bool(self.settled):
            return True
        if not (seen := int(self.steps)):
            return False
        if seen < MIN_STEPS:
            warnings.warn(
                f"the automatic threshold was set at training step {seen}, too early for the reconstruction to settle; "
                f"train longer, or set threshold to a number such as 10/255",
                stacklevel=2,
            )
        with torch.no_grad():
            self._set(~self.settled)
            self.settled.fill_(True)
        return True

    def _set(self, where: Tensor) -> None:
        """Sets t to the quantile where the condition, `[]`, holds."""
        assert self.threshold is not None
        self.threshold.copy_(torch.where(where, self.quantiles[0].clamp(0, 1), self.threshold))

    def extra_repr(self) -> str:
        auto = f"threshold=auto, pass_share={self.pass_share:g}, " if self.is_auto else ""
        return f"{auto}resize={self.resize}, surrogate={self.surrogate}, alpha={self.alpha:g}"


def _over_processes(quantile: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the processes' quantiles `[]` that are not NaN, and whether there is one: the same in each process.

    Otherwise the processes of a training would set thresholds of their own, and each would go on with its own detector.
    """
    seen = quantile.isfinite()  # not where no pixel counts
    total = torch.stack([quantile.nan_to_num(0.0), seen.to(quantile)])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
    return total[0] / total[1].clamp(min=1), total[1] > 0
