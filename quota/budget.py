"""Where to drop how many visual tokens, so that a budget is kept at the least measured error: an exact solver.

Let E_l(k) be the output error of the deployed model when all visual tokens but k go after layer l and nothing else is
dropped (measured in quota/drop_errors.py; l = -1: before the decoder). Going from a to b < a tokens after layer l is
charged what it adds there, so a schedule k_1 >= k_2 >= ... after the layers l_1 < l_2 < ... has the

    error   sum_i  E_{l_i}(k_i) - E_{l_i}(k_{i-1})                    k_0 = V0, E_l(V0) = 0
    cost    sum over decoder layers of w(tokens that enter it)        w: tokens, GFLOPs, KV bytes or milliseconds

E_l is made to rise as k falls (a running maximum), so no step is charged less than nothing. For every number of tokens
that may be present, the solver goes through the layers and keeps all (cost, error) of which no other is as good in
both. What is left within the budget at the end is the least error that any schedule over the given layers and counts
has: dynamic programming, as exact as the charge is. Equation (3) of the paper spreads drops by how much quantisation
disturbs a layer's input; here the drops themselves are measured, under the same operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate

from quota.errors import QuotaError

Errors = Mapping[int, Mapping[int, float]]
"""Candidate layer -> number of tokens left after it -> output error."""
Work = Callable[[int], float]
"""Cost of one decoder layer by the number of visual tokens that enter it."""
Schedule = tuple[tuple[int, int], ...]
"""(candidate layer, tokens left after it), ascending in layers."""


def best_schedule(
    errors: Errors, tokens: int, depth: int, work: Work, budget: float, final: int | None = None
) -> Schedule:
    """The schedule of least error whose cost is at most `budget`; of equals the cheaper, then the one cut earlier.

    Args:
        errors: tables over the same counts (all below `tokens`), for layers from -1 to `depth` - 1.
        tokens: V0. depth: decoder layers. work: never falling. budget: in the unit of `work`, over all layers.
        final: tokens that must be left in the end; None leaves that open.

    Raises QuotaError if no schedule over these layers and counts keeps the budget.
    """
    rising = {layer: _rising(table, tokens) for layer, table in errors.items()}
    # Tokens present -> (cost, error, schedule so far), none of them worse than another in both.
    fronts: dict[int, list[tuple[float, float, Schedule]]] = {tokens: [(0.0, 0.0, ())]}
    for layer in range(-1, depth):
        if layer >= 0:
            fronts = {
                count: [
                    (cost + work(count), error, cuts) for cost, error, cuts in front if cost + work(count) <= budget
                ]
                for count, front in fronts.items()
            }
        if layer in rising:
            fronts = _cut(fronts, layer, rising[layer])
    reached = [state for count, front in fronts.items() if final is None or count == final for state in front]
    if not reached:
        raise QuotaError(f"no schedule over the layers {sorted(errors)} keeps a budget of {budget:g}; allow more")
    return min(reached, key=lambda state: (state[1], state[0], state[2]))[2]


def _rising(table: Mapping[int, float], tokens: int) -> dict[int, float]:
    """The table with all `tokens` at no error, and no fewer tokens at less error than more of them."""
    counts = [tokens, *sorted(table, reverse=True)]
    return dict(zip(counts, accumulate([0.0, *(table[count] for count in counts[1:])], max), strict=True))


def _cut(
    fronts: dict[int, list[tuple[float, float, Schedule]]], layer: int, table: Mapping[int, float]
) -> dict[int, list[tuple[float, float, Schedule]]]:
    """Every way to go on after `layer`, with as many tokens or fewer."""
    reached: dict[int, list[tuple[float, float, Schedule]]] = {count: list(front) for count, front in fronts.items()}
    for before, front in fronts.items():
        for after in table:
            if after < before:
                charge = table[after] - table[before]
                moved = [(cost, error + charge, (*cuts, (layer, after))) for cost, error, cuts in front]
                reached.setdefault(after, []).extend(moved)
    return {count: _undominated(front) for count, front in reached.items()}


def _undominated(states: list[tuple[float, float, Schedule]]) -> list[tuple[float, float, Schedule]]:
    kept: list[tuple[float, float, Schedule]] = []
    for state in sorted(states):
        if not kept or state[1] < kept[-1][1]:
            kept.append(state)
    return kept
