"""Statistics of matched runs: means, and paired differences by seed with their interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

__all__ = ["CONFIDENCE", "Difference", "Mean", "check_scipy", "mean", "paired_difference"]

CONFIDENCE = 0.95


class Mean(NamedTuple):
    """Mean and standard deviation of values; of one value the deviation is NaN."""

    mean: float
    deviation: float
    values: int


class Difference(NamedTuple):
    """The mean of paired differences, and its interval of 95 %; of one pair the ends are NaN.

    Attributes:
        mean: the mean.
        low: lower end of the interval.
        high: upper end.
        each: the difference of each seed, by seed.
    """

    mean: float
    low: float
    high: float
    each: dict[int, float]


def check_scipy() -> None:
    """Raises a ValueError if SciPy is not installed."""
    try:
        import scipy.stats  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError("a study's intervals need SciPy, which is not installed; pip install scipy") from error


def mean(values: Sequence[float]) -> Mean:
    """Mean and standard deviation (of the sample, over n - 1) of at least one value."""
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return Mean(statistics.fmean(values), deviation, len(values))


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """The mean over the seeds that both have of `values - baseline`, with the interval of Student's t.

    Args:
        values: a value for each seed.
        baseline: likewise.

    Returns:
        None if they share no seed.
    """
    each = {seed: values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())}
    if not each:
        return None
    middle, deviation, pairs = mean(list(each.values()))
    if pairs < 2:
        return Difference(middle, math.nan, math.nan, each)
    if deviation == 0:
        return Difference(middle, middle, middle, each)
    from scipy.stats import t

    low, high = t.interval(CONFIDENCE, pairs - 1, loc=middle, scale=deviation / math.sqrt(pairs))
    return Difference(middle, float(low), float(high), each)
