"""The table of single cuts between its entries, and what cuts add up to."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.allocation.table import SMALLEST, charge, error_at, rising, with_count
from quota.errors import QuotaError
from quota.pruning.schedule import Schedule

ROW = {12: 0.01, 8: 0.1, 4: 0.05, 2: 1.0}


def test_fewer_tokens_are_at_no_less_error() -> None:
    assert rising(ROW, 16) == {16: 0, 12: 0.01, 8: 0.1, 4: 0.1, 2: 1.0}


def test_entries_are_read_as_they_are_and_all_tokens_cost_nothing() -> None:
    assert [error_at(ROW, count, 16) for count in (16, 12, 8, 4, 2)] == [0, 0.01, 0.1, 0.1, 1.0]


def test_between_entries_the_logarithm_is_linear() -> None:
    halfway = error_at({12: 0.01, 8: 0.1}, 10, 16)
    assert math.log(halfway + SMALLEST) == pytest.approx((math.log(0.01 + SMALLEST) + math.log(0.1 + SMALLEST)) / 2)


@given(st.dictionaries(st.integers(1, 15), st.floats(0, 20), min_size=1, max_size=6))
def test_it_rises_as_tokens_fall(row: dict[int, float]) -> None:
    errors = [error_at(row, count, 16) for count in range(16, min(row) - 1, -1)]
    assert all(a <= b + 1e-12 for a, b in pairwise(errors))


def test_below_what_was_measured_nothing_is_made_up() -> None:
    with pytest.raises(QuotaError, match="measured down to 2 of 16 visual tokens, not to 1"):
        error_at(ROW, 1, 16)
    with pytest.raises(QuotaError, match="not to 1"):
        with_count({0: ROW}, 1, 16)


def test_a_count_that_is_asked_for_joins_every_row() -> None:
    table = with_count({0: ROW, 3: ROW}, 10, 16)
    assert [row[10] for row in table.values()] == [error_at(ROW, 10, 16)] * 2
    assert {count for row in table.values() for count in row} == {*ROW, 10}
    assert with_count({0: ROW}, 16, 16) == {0: ROW}


def test_cuts_add_up_by_what_each_adds_where_it_is() -> None:
    errors = {-1: {8: 0.4, 4: 1.0}, 2: {8: 0.1, 4: 0.3}}
    assert charge(errors, Schedule(), 16) == 0
    assert charge(errors, Schedule((-1, 2), (0.5, 0.25)), 16) == pytest.approx(0.4 + (0.3 - 0.1))
    with pytest.raises(QuotaError, match=r"after the layers \[-1, 2\], not after 1"):
        charge(errors, Schedule((1,), (0.5,)), 16)
