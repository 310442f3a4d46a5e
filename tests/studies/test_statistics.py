"""Means and paired differences against values computed by hand."""

from __future__ import annotations

import math

import pytest

from srtod.studies.statistics import mean, paired_difference


def test_mean_and_deviation() -> None:
    assert mean([1.0, 2.0, 3.0, 4.0]) == pytest.approx((2.5, math.sqrt(5 / 3), 4))
    assert math.isnan(mean([3.0]).deviation)


def test_paired_difference_has_the_interval_of_students_t() -> None:
    # Differences 1, 2, 3, 6: mean 3, deviation sqrt(14 / 3), error sqrt(14 / 3) / 2; t(0.975, 3) = 3.182446.
    found = paired_difference({0: 11, 1: 22, 2: 33, 3: 46, 9: 0}, {3: 40, 2: 30, 1: 20, 0: 10, 5: 1})
    assert found is not None
    half = 3.182446 * math.sqrt(14 / 3) / 2
    assert found[:3] == pytest.approx((3, 3 - half, 3 + half), rel=1e-6)
    assert found.each == {0: 1, 1: 2, 2: 3, 3: 6}


def test_two_pairs_one_and_none() -> None:
    two = paired_difference({0: 1.0, 1: 3.0}, {0: 0.0, 1: 0.0})  # mean 2, error 1; t(0.975, 1) = 12.7062
    assert two is not None
    assert two[:3] == pytest.approx((2, 2 - 12.7062, 2 + 12.7062), rel=1e-5)
    one = paired_difference({0: 1.0}, {0: 0.5, 1: 0.0})
    assert one is not None
    assert one.mean == 0.5
    assert math.isnan(one.low)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    same = paired_difference({0: 1.0, 1: 1.0}, {0: 0.0, 1: 0.0})
    assert same is not None
    assert same[:3] == (1.0, 1.0, 1.0)
