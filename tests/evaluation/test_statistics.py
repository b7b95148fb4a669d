"""Bootstrap intervals and retention against arithmetic done by hand."""

from __future__ import annotations

import math

import pytest

from quota.errors import QuotaError
from quota.evaluation.statistics import accuracy_interval, retention, retention_interval

HALF = [True, False] * 100


def test_interval_of_one_task_is_the_binomial_one() -> None:
    low, high = accuracy_interval({"t": HALF}, seed=0)
    standard_error = math.sqrt(0.25 / 200)
    assert low == pytest.approx(0.5 - 1.96 * standard_error, abs=0.01)
    assert high == pytest.approx(0.5 + 1.96 * standard_error, abs=0.01)


def test_resampling_stays_within_tasks() -> None:
    """One task all right and one all wrong: were questions mixed, the average would vary."""
    assert accuracy_interval({"easy": [True] * 50, "hard": [False] * 50}) == (0.5, 0.5)


def test_a_small_task_weighs_as_much_as_a_large_one() -> None:
    low, high = accuracy_interval({"small": [True] * 2, "large": [False] * 2000})
    assert (low, high) == (0.5, 0.5)


def test_the_seed_decides() -> None:
    outcomes = {"t": HALF[:31]}
    assert accuracy_interval(outcomes, seed=3) == accuracy_interval(outcomes, seed=3)
    assert retention_interval(outcomes, outcomes, seed=3) == (1.0, 1.0)


def test_retention_is_the_mean_of_the_tasks_ratios() -> None:
    baseline = {"a": [True] * 10, "b": [True] * 5 + [False] * 5}
    variant = {"a": [True] * 8 + [False] * 2, "b": [True] * 5 + [False] * 5}
    assert retention(variant, baseline) == pytest.approx((0.8 + 1.0) / 2)
    interval = retention_interval(variant, baseline)
    assert interval is not None
    assert interval[0] < 0.9 < interval[1]


def test_pairing_takes_out_the_luck_of_the_questions() -> None:
    """The same outcomes give exactly 1; the same accuracy on other questions does not."""
    flipped = {"t": [not right for right in HALF]}
    assert retention_interval({"t": HALF}, {"t": HALF}) == (1.0, 1.0)
    interval = retention_interval(flipped, {"t": HALF})
    assert interval is not None and interval[1] - interval[0] > 0.2


def test_no_ratio_to_a_baseline_that_is_always_wrong() -> None:
    nothing = {"t": [False] * 4, "u": [True] * 4}
    assert retention({"t": [True] * 4, "u": [True] * 4}, nothing) is None
    assert retention_interval({"t": [True] * 4, "u": [True] * 4}, nothing) is None


def test_only_the_same_questions_can_be_compared() -> None:
    with pytest.raises(QuotaError, match="same questions"):
        retention({"t": HALF}, {"t": HALF[:-1]})
