"""The solver against all schedules there are."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quota.budget import Schedule, best_schedule
from quota.errors import QuotaError

TOKENS, DEPTH, COUNTS = 8, 4, (6, 3, 1)
tables = st.fixed_dictionaries(
    {layer: st.fixed_dictionaries({count: st.integers(0, 20) for count in COUNTS}) for layer in (-1, 0, 2)}
)


def work(tokens: int) -> float:
    return float(tokens + tokens**2 // 4)


def cost(schedule: Schedule) -> float:
    after, entering, total = dict(schedule), TOKENS, 0.0
    entering = after.get(-1, TOKENS)
    for layer in range(DEPTH):
        total += work(entering)
        entering = after.get(layer, entering)
    return total


def error(schedule: Schedule, errors: dict[int, dict[int, int]]) -> float:
    def at(layer: int, count: int) -> int:
        return max([0, *(errors[layer][other] for other in COUNTS if other >= count)])

    before, total = TOKENS, 0
    for layer, count in schedule:
        total += at(layer, count) - (at(layer, before) if before < TOKENS else 0)
        before = count
    return total


def every_schedule() -> list[Schedule]:
    found = set()
    for counts in product((TOKENS, *COUNTS), repeat=3):
        if list(counts) == sorted(counts, reverse=True):
            cuts, before = [], TOKENS
            for layer, count in zip((-1, 0, 2), counts, strict=True):
                if count < before:
                    cuts.append((layer, count))
                before = count
            found.add(tuple(cuts))
    return sorted(found)


@settings(max_examples=200)
@given(tables, st.integers(2, 100), st.sampled_from([None, *COUNTS]))
def test_no_schedule_within_the_budget_has_less_error(
    errors: dict[int, dict[int, int]], budget: int, final: int | None
) -> None:
    def ends(schedule: Schedule) -> bool:
        return final is None or (schedule[-1][1] if schedule else TOKENS) == final

    allowed = [schedule for schedule in every_schedule() if cost(schedule) <= budget and ends(schedule)]
    if not allowed:
        with pytest.raises(QuotaError, match="keeps a budget"):
            best_schedule(errors, TOKENS, DEPTH, work, budget, final)
        return
    found = best_schedule(errors, TOKENS, DEPTH, work, budget, final)
    assert found in allowed
    least = min(error(schedule, errors) for schedule in allowed)
    assert error(found, errors) == pytest.approx(least)
    assert cost(found) == min(cost(one) for one in allowed if error(one, errors) == least)


def test_a_written_example() -> None:
    # Dropping half early costs 1 and late nothing; the budget of 24 tokens-in-layers allows the late cut only.
    errors = {-1: {4: 1.0}, 1: {4: 0.0}}
    assert best_schedule(errors, 8, 4, float, 24.0) == ((1, 4),)
    assert best_schedule(errors, 8, 4, float, 16.0) == ((-1, 4),)
    assert best_schedule(errors, 8, 4, float, 32.0, final=8) == ()
