"""Schedules, and equation (5)."""

from __future__ import annotations

import math
from fractions import Fraction
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quota.errors import QuotaError
from quota.pruning.schedule import Schedule, keep_count, layer_work

keeps = st.floats(1e-6, 1)


class TestKeepCount:
    @given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(0, 1_000_000))
    @example(3, 10, 100)
    @example(7, 100, 100)
    @example(5, 6, 6)
    @example(9999, 10_000, 10_000)
    def test_is_the_exact_ceiling(self, a: int, b: int, tokens: int) -> None:
        a = min(a, b)
        assert keep_count(a / b, tokens) == math.ceil(Fraction(a, b) * tokens)

    @pytest.mark.parametrize(
        ("ratio", "tokens", "count"),
        [
            (0.3, 100, 30),
            (0.07, 100, 7),
            (0.55, 100, 55),
            (0.3, 10, 3),
            (0.1 + 0.2, 100, 30),
            (1 - 0.7, 100, 30),
            (1.1 - 0.8, 10, 3),
            (0.3, 576, 173),
        ],
    )
    def test_round_off_adds_no_token(self, ratio: float, tokens: int, count: int) -> None:
        assert keep_count(ratio, tokens) == count

    @given(keeps, st.integers(1, 10_000))
    def test_keeps_one_at_least_and_all_at_most(self, ratio: float, tokens: int) -> None:
        assert 1 <= keep_count(ratio, tokens) <= tokens

    def test_none_of_none(self) -> None:
        assert keep_count(0.3, 0) == 0

    @given(st.integers(0, 1_000_000))
    def test_all_of_all(self, tokens: int) -> None:
        assert keep_count(1.0, tokens) == tokens

    @pytest.mark.parametrize("ratio", [0.0, -0.3, 1.5, math.nan])
    def test_refuses_ratio(self, ratio: float) -> None:
        with pytest.raises(QuotaError, match="keep must be"):
            keep_count(ratio, 10)

    def test_refuses_negative_tokens(self) -> None:
        with pytest.raises(QuotaError, match="negative"):
            keep_count(0.3, -1)


class TestSchedule:
    def test_a_cut_is_felt_by_the_layers_behind_it(self) -> None:
        schedule = Schedule.of_counts([(-1, 90), (1, 40), (3, 7)], 100)
        assert schedule.entering(100, 6) == [90, 90, 40, 40, 7, 7]
        assert Schedule.of_counts([(5, 1)], 100).entering(100, 6) == [100] * 6

    @given(st.data(), st.integers(1, 400))
    def test_counts_come_back(self, data: st.DataObject, tokens: int) -> None:
        counts = sorted(data.draw(st.lists(st.integers(1, tokens), max_size=5)), reverse=True)
        assert Schedule.of_counts(enumerate(counts), tokens).counts(tokens) == counts

    def test_images_of_other_sizes_keep_the_same_share(self) -> None:
        assert Schedule((2, 4), (0.5, 0.25)).counts(10) == [5, 3]

    def test_cost_is_that_of_every_layer_and_cut(self) -> None:
        schedule = Schedule((0, 2), (0.5, 0.25))
        assert schedule.cost(8, 4, float, cut=10) == 8 + 4 + 4 + 2 + 20
        assert Schedule().cost(8, 4, float, cut=10) == 32

    def test_keeping_everything_is_all_the_arithmetic(self) -> None:
        config = SimpleNamespace(hidden_size=8, intermediate_size=16, num_attention_heads=2)
        assert Schedule().compute(9, 5, config) == 1
        assert Schedule((-1,), (1 / 3,)).compute(9, 5, config) == layer_work(9, config)(3) < 1 / 3
