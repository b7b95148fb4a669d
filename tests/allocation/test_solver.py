"""The solver against all schedules there are."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quota.allocation.solver import Limit, best_schedules
from quota.errors import QuotaError
from quota.pruning.schedule import Schedule

TOKENS, DEPTH, COUNTS = 8, 4, (6, 3, 1)
Cuts = tuple[tuple[int, int], ...]
tables = st.fixed_dictionaries(
    {layer: st.fixed_dictionaries({count: st.integers(0, 20) for count in COUNTS}) for layer in (-1, 0, 2)}
)


def work(tokens: int) -> float:
    return float(tokens + tokens**2 // 4)


def cost(cuts: Cuts, cut: int = 0, kept: bool = False) -> float:
    after, total = dict(cuts), float(cut * len(cuts))
    entering = after.get(-1, TOKENS)
    for layer in range(DEPTH):
        leaving = after.get(layer, entering)
        total += work(leaving if kept else entering)
        entering = leaving
    return total


def error(cuts: Cuts, errors: dict[int, dict[int, int]]) -> float:
    def at(layer: int, count: int) -> int:
        return max([0, *(errors[layer][other] for other in COUNTS if other >= count)])

    before, total = TOKENS, 0
    for layer, count in cuts:
        total += at(layer, count) - (at(layer, before) if before < TOKENS else 0)
        before = count
    return total


def every_schedule() -> list[Cuts]:
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


def more_fits(cuts: Cuts, budget: int, final: int | None, cut: int, cached: bool) -> bool:
    """Whether some layers in a row, which keep the same, could keep more within the budget."""

    def kept(one: Cuts) -> list[int]:
        left, found = TOKENS, []
        for layer in (-1, 0, 2):
            left = dict(one).get(layer, left)
            found.append(left)
        return found

    def raised(other: Cuts) -> bool:
        changed = [(a, b) for a, b in zip(kept(cuts), kept(other), strict=True) if a != b]
        return len(set(changed)) == 1 and changed[0][1] > changed[0][0]

    return any(raised(one) and cost(one, cut, cached) <= budget and ends(one, final) for one in every_schedule())


def ends(cuts: Cuts, final: int | None) -> bool:
    return final is None or (cuts[-1][1] if cuts else TOKENS) == final


@settings(max_examples=300)
@given(
    tables,
    st.integers(2, 100),
    st.sampled_from([None, *COUNTS]),
    st.integers(1, 12),
    st.integers(0, 9),
    st.booleans(),
)
def test_the_best_of_all_schedules_within_the_budget_in_order(
    errors: dict[int, dict[int, int]], budget: int, final: int | None, count: int, cut: int, kept: bool
) -> None:
    limit = Limit(budget, work, cut, kept)
    allowed = [one for one in every_schedule() if cost(one, cut, kept) <= budget and ends(one, final)]
    if not allowed:
        with pytest.raises(QuotaError, match="no schedule keeps to this budget"):
            best_schedules(errors, TOKENS, DEPTH, limit, final, count)
        return
    full = [one for one in allowed if not more_fits(one, budget, final, cut, kept)]
    expected = sorted(full, key=lambda one: (error(one, errors), cost(one, cut, kept), one))
    found = best_schedules(errors, TOKENS, DEPTH, limit, final, count)
    assert found == [Schedule.of_counts(cuts, TOKENS) for cuts in expected[:count]]
    costs = [one.cost(TOKENS, DEPTH, work, cut, kept) for one in found]
    assert costs == [cost(cuts, cut, kept) for cuts in expected[:count]]


def test_a_written_example() -> None:
    # Dropping half early costs 1 and late nothing; the budget of 24 tokens-in-layers allows the late cut only.
    errors = {-1: {4: 1.0}, 1: {4: 0.0}}
    assert best_schedules(errors, 8, 4, Limit(24.0, float)) == [Schedule((1,), (0.5,))]
    assert best_schedules(errors, 8, 4, Limit(16.0, float)) == [Schedule((-1,), (0.5,))]
    assert best_schedules(errors, 8, 4, Limit(32.0, float), final=8) == [Schedule()]
    assert best_schedules(errors, 8, 4, Limit(32.0, float), final=4, count=5) == [Schedule((1,), (0.5,))]
    # The cache of layer 1 is cut with what leaves it: 8 + 4 + 4 + 4.
    assert best_schedules(errors, 8, 4, Limit(20.0, float, kept=True)) == [Schedule((1,), (0.5,))]


def test_a_budget_out_of_reach_says_what_could_be_reached() -> None:
    with pytest.raises(QuotaError, match=r"25\.0% of what all .* with 4 of 8 from the first layer on it is 50\.0%"):
        best_schedules({-1: {4: 1.0}, 1: {4: 0.0}}, 8, 4, Limit(8.0, float))
