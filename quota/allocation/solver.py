"""Where to drop how many visual tokens, so that a budget is kept at the least measured error: an exact solver.

Let E_l(k) be the output error of the deployed model when all visual tokens but k go after layer l and nothing else is
dropped (measured in quota/allocation/drops.py; l = -1: before the decoder). Going from a to b < a tokens after layer l
is charged what it adds there, so a schedule k_1 >= k_2 >= ... after the layers l_1 < l_2 < ... has the

    charge  sum_i  E_{l_i}(k_i) - E_{l_i}(k_{i-1})                   k_0 = V0, E_l(V0) = 0
    cost    sum over decoder layers of w(tokens that enter it)        w: tokens, GFLOPs, KV bytes or milliseconds
            + c for every cut                                         c: 0, or the milliseconds that a cut takes itself

E_l is made to rise as k falls (a running maximum), so no step is charged less than nothing. For every number of tokens
that may be present, the solver goes through the layers and keeps all (cost, charge) that fewer than n others are as
good as in both. What is left within the budget at the end holds the n schedules of least charge over the given layers
and counts: dynamic programming, as exact as the charge is. That cuts add up is an assumption, so the best few are then
measured whole (quota/allocation/search.py). Equation (3) of the paper spreads drops by how much quantisation disturbs
a layer's input; here the drops themselves are measured, under the same operators.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator, Mapping
from itertools import accumulate

from quota.errors import QuotaError
from quota.pruning.schedule import Schedule, Work

Errors = Mapping[int, Mapping[int, float]]
"""Candidate layer -> number of tokens left after it -> output error, over the same counts for every layer."""
_Cuts = tuple[tuple[int, int], ...]
"""(candidate layer, tokens left after it), ascending in layers: a schedule in the making."""


def best_schedules(
    errors: Errors,
    tokens: int,
    depth: int,
    work: Work,
    budget: float,
    final: int | None = None,
    count: int = 1,
    cut: float = 0.0,
) -> list[Schedule]:
    """The `count` schedules of least charge whose cost is at most `budget`, or as many as there are, best first.

    Schedules that could keep more at some layers in a row, and else the same, within the budget are left out. Of equals
    the cheaper comes first, then the one cut earlier.

    Args:
        errors: tables over the same counts (all below `tokens`), for layers from -1 to `depth` - 1.
        tokens: V0. depth: decoder layers. work: never falling. budget: in the unit of `work`, over all layers.
        final: tokens that must be left in the end; None leaves that open.
        cut: cost of a cut itself, in the unit of `work`.

    Raises QuotaError if no schedule over these layers and counts keeps the budget.
    """
    rising = {layer: _rising(table, tokens) for layer, table in errors.items()}
    most = count
    while True:
        found = _least(rising, tokens, depth, work, budget, final, most, cut)
        if not found:
            raise QuotaError(f"no schedule over the layers {sorted(errors)} keeps a budget of {budget:g}; allow more")
        full = [
            cuts
            for cuts in found
            if not any(
                Schedule.of_counts(more, tokens).cost(tokens, depth, work, cut) <= budget
                for more in _just_above(cuts, rising, final)
            )
        ]
        if len(full) >= count or len(found) < most:
            return [Schedule.of_counts(cuts, tokens) for cuts in full[:count]]
        most *= 4


def _least(
    rising: Errors, tokens: int, depth: int, work: Work, budget: float, final: int | None, most: int, cut: float
) -> list[_Cuts]:
    """The `most` schedules of least charge, or as many as there are."""
    # Tokens present -> (cost, charge, schedule so far), none of them worse in both than `most` others.
    fronts: dict[int, list[tuple[float, float, _Cuts]]] = {tokens: [(0.0, 0.0, ())]}
    for layer in range(-1, depth):
        if layer >= 0:
            fronts = {
                count: [
                    (cost + work(count), charge, cuts) for cost, charge, cuts in front if cost + work(count) <= budget
                ]
                for count, front in fronts.items()
            }
        if layer in rising:
            fronts = _cut(fronts, layer, rising[layer], most, cut, budget)
    reached = [state for count, front in fronts.items() if final is None or count == final for state in front]
    best = sorted(reached, key=lambda state: (state[1], state[0], state[2]))
    return [cuts for _, _, cuts in best[:most]]


def _just_above(cuts: _Cuts, rising: Errors, final: int | None) -> Iterator[_Cuts]:
    """A schedule is a staircase over the layers: those in which the first layers of one stair are raised."""
    layers, counts = sorted(rising), sorted(next(iter(rising.values())), reverse=True)
    after, left = [], counts[0]
    for layer in layers:
        left = dict(cuts).get(layer, left)
        after.append(left)
    for start, count in enumerate(after):
        before = after[start - 1] if start else counts[0]
        if count == before:
            continue
        for stop in range(start + 1, start + after.count(count) + 1):
            if final is not None and stop == len(after):
                continue
            for higher in counts[counts.index(before) : counts.index(count)]:
                yield _cuts(layers, [*after[:start], *[higher] * (stop - start), *after[stop:]], counts[0])


def _cuts(layers: list[int], after: list[int], tokens: int) -> _Cuts:
    """The staircase `after` as cuts."""
    befores = [tokens, *after]
    return tuple((layer, left) for layer, left, before in zip(layers, after, befores, strict=False) if left < before)


def _rising(table: Mapping[int, float], tokens: int) -> dict[int, float]:
    """The table with all `tokens` at no error, and no fewer tokens at less error than more of them."""
    counts = [tokens, *sorted(table, reverse=True)]
    return dict(zip(counts, accumulate([0.0, *(table[count] for count in counts[1:])], max), strict=True))


def _cut(
    fronts: dict[int, list[tuple[float, float, _Cuts]]],
    layer: int,
    table: Mapping[int, float],
    most: int,
    cut: float,
    budget: float,
) -> dict[int, list[tuple[float, float, _Cuts]]]:
    """Every way to go on after `layer`, with as many tokens or fewer."""
    reached: dict[int, list[tuple[float, float, _Cuts]]] = {count: list(front) for count, front in fronts.items()}
    for before, front in fronts.items():
        for after in table:
            if after < before:
                charge = table[after] - table[before]
                moved = [
                    (cost + cut, so_far + charge, (*cuts, (layer, after)))
                    for cost, so_far, cuts in front
                    if cost + cut <= budget
                ]
                reached.setdefault(after, []).extend(moved)
    return {count: _undominated(front, most) for count, front in reached.items()}


def _undominated(states: list[tuple[float, float, _Cuts]], most: int) -> list[tuple[float, float, _Cuts]]:
    """Those that fewer than `most` others are as good as in both."""
    kept: list[tuple[float, float, _Cuts]] = []
    charges: list[float] = []
    for state in sorted(states):
        if bisect_right(charges, state[1]) < most:
            kept.append(state)
            insort(charges, state[1])
    return kept
