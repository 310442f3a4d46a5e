"""Averaged weights, which are evaluated and saved in place of the trained ones."""

from __future__ import annotations

from lightning.pytorch.callbacks import EMAWeightAveraging

__all__ = ["AveragedWeights"]


class AveragedWeights(EMAWeightAveraging):
    """Lightning's exponential moving average of the weights; evaluations and checkpoints use the average.

    After each step, average = decay * average + (1 - decay) * weights. The average starts with the weights after the
    first step. Buffers are copied, not averaged: frozen statistics would gain rounding errors, and running statistics
    are averages already.

    Args:
        decay: share of the average that a step keeps.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(decay=decay, use_buffers=False)
