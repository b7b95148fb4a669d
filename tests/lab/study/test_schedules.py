"""Schedules of keep ratios, and the budget at which one costs what another costs."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.allocation.paper import keep_ratios
from quota.errors import QuotaError
from quota_lab.study.schedules import keep_for_cost, ratios

RULES = ("paper", "reversed", "linear", "uniform", "one-shot")
SENSITIVITIES = [0.3, 0.1, 0.2]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        pytest.param("linear", [0.8, 0.6, 0.4], id="linear"),
        pytest.param("uniform", [0.4 ** (1 / 3), 0.4 ** (2 / 3), 0.4], id="uniform"),
        pytest.param("one-shot", [0.4, 0.4, 0.4], id="one-shot"),
        pytest.param("paper", keep_ratios(SENSITIVITIES, 0.4), id="paper"),
        pytest.param("reversed", keep_ratios([0.1, 0.3, 0.2], 0.4), id="reversed"),
    ],
)
def test_written_examples(rule: str, expected: list[float]) -> None:
    assert ratios(rule, SENSITIVITIES, 0.4) == pytest.approx(expected)


@pytest.mark.parametrize("rule", RULES)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0.01, 1))
def test_every_rule_never_rises_and_ends_at_keep(rule: str, sensitivities: list[float], keep: float) -> None:
    found = ratios(rule, sensitivities, keep)
    assert len(found) == len(sensitivities) and found[-1] == keep
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(found))


@pytest.mark.parametrize("rule", RULES)
def test_a_ratio_out_of_range(rule: str) -> None:
    with pytest.raises(QuotaError, match="keep must be above 0"):
        ratios(rule, SENSITIVITIES, 0.0)


@given(st.integers(1, 600), st.floats(0, 1))
def test_the_largest_budget_within_a_cost(tokens: int, target: float) -> None:
    keep = keep_for_cost(target, tokens, lambda share: share**2)
    count = round(keep * tokens)
    assert 1 <= count <= tokens
    assert count == 1 or (count / tokens) ** 2 <= target + 1e-9
    assert count == tokens or ((count + 1) / tokens) ** 2 > target
