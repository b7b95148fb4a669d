"""Figures of a row: retention, intervals and spread over seeds."""

from __future__ import annotations

import pytest

from quota_lab.study.figures import average, figure
from quota_lab.study.workshop import Outcome

T, F = True, False


def outcome(*right: bool) -> Outcome:
    return Outcome({"one": list(right[:4]), "two": list(right[4:])}, [1], [4, 2], 0.75)


FULL = outcome(T, T, T, T, T, T, F, F)
FIRST = outcome(T, T, T, F, T, F, F, F)
SECOND = outcome(T, T, F, F, T, T, F, F)


def test_seeds_are_averaged_question_by_question() -> None:
    assert average([FIRST, SECOND]) == {"one": [1, 1, 0.5, 0], "two": [1, 0.5, 0, 0]}


def test_retention_spread_and_difference() -> None:
    # Against 4/4 and 2/4: the first seed keeps 3/4 and 1/2, the second 2/4 and 1.
    found = figure([FIRST, SECOND], [FULL, FULL], [FULL])
    assert found.retention == pytest.approx((0.625 + 0.75) / 2)
    assert found.spread == pytest.approx((0.625, 0.75))
    assert found.against == pytest.approx(found.retention - 1)
    assert found.accuracy == {"one": 0.625, "two": 0.375}
    assert found.interval is not None and found.interval[0] <= found.retention <= found.interval[1]
    assert found.against_interval is not None and found.against_interval[1] < 0
    assert found.cost == 0.75 and found.seeds == 2


def test_a_row_alone_has_no_spread_and_no_difference() -> None:
    found = figure([FULL], [FULL], None)
    assert found.retention == 1 and found.interval == (1, 1)
    assert found.spread is None and found.against is None and found.against_interval is None
