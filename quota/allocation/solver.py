"""Where to drop how many visual tokens, so that a budget is kept at the least measured error: an exact solver.

Let E_l(k) be the output error of the deployed model when all visual tokens but k go after layer l and nothing else is
dropped (measured in quota/allocation/drops.py; l = -1: before the decoder). Going from a to b < a tokens after layer l
is charged what it adds there, so a schedule k_1 >= k_2 >= ... after the layers l_1 < l_2 < ... has the

    charge  sum_i  E_{l_i}(k_i) - E_{l_i}(k_{i-1})                   k_0 = V0, E_l(V0) = 0
    cost    sum over decoder layers of w(tokens that enter it, or that its cache keeps)
            + c for every cut                                         c: 0, or the time that a cut takes itself

E_l rises as k falls (quota/allocation/table.py), so no step is charged less than nothing. For every number of tokens
that may be present, the solver goes through the layers and keeps all (cost, charge) that fewer than n others are as
good as in both. What is left within the budget at the end holds the n schedules of least charge over the given layers
and counts: dynamic programming, as exact as the charge is. That cuts add up is an assumption, so the best few are then
measured whole (quota/allocation/search.py). Equation (3) of the paper spreads drops by how much quantisation disturbs
a layer's input; here the drops themselves are measured, under the same operators.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from quota.allocation.table import Errors, rising
from quota.errors import QuotaError
from quota.pruning.schedule import Schedule, Work

_Cuts = tuple[tuple[int, int], ...]
"""(candidate layer, tokens left after it), ascending in layers: a schedule in the making."""
_State = tuple[float, float, _Cuts]
"""Cost, charge, and the schedule so far."""
_Fronts = dict[int, list[_State]]
"""By the tokens present."""


@dataclass(frozen=True)
class Limit:
    """How much a schedule may cost over all layers, and how that is counted."""

    most: float
    work: Work
    """Of a layer by its tokens, never falling; in the unit of `most`."""
    cut: float = 0.0
    """Of a cut itself, in that unit."""
    kept: bool = False
    """Whether tokens count that a layer's cache keeps, as bytes do; else those that enter it."""

    def allows(self, schedule: Schedule, tokens: int, depth: int) -> bool:
        """Whether `schedule` keeps to it, over `depth` layers and of `tokens` at first."""
        return schedule.cost(tokens, depth, self.work, self.cut, self.kept) <= self.most


def best_schedules(
    errors: Errors, tokens: int, depth: int, limit: Limit, final: int | None = None, count: int = 1
) -> list[Schedule]:
    """The `count` schedules of least charge that keep to `limit`, or as many as there are, best first.

    Schedules that could keep more at some layers in a row, and else the same, within the budget are left out. Of equals
    the cheaper comes first, then the one cut earlier.

    Args:
        errors: tables over the same counts (all below `tokens`), for layers from -1 to `depth` - 1.
        tokens: V0. depth: decoder layers.
        final: tokens that must be left in the end; None leaves that open.

    Raises QuotaError if no schedule over these layers and counts keeps the budget.
    """
    tables = {layer: rising(table, tokens) for layer, table in errors.items()}
    most = count
    while True:
        found = _least(tables, tokens, depth, limit, final, most)
        if not found:
            raise QuotaError(_out_of_reach(tables, tokens, depth, limit, final))
        full = [
            cuts
            for cuts in found
            if not any(
                limit.allows(Schedule.of_counts(more, tokens), tokens, depth)
                for more in _just_above(cuts, tables, final)
            )
        ]
        if len(full) >= count or len(found) < most:
            return [Schedule.of_counts(cuts, tokens) for cuts in full[:count]]
        most *= 4


def _out_of_reach(tables: Errors, tokens: int, depth: int, limit: Limit, final: int | None) -> str:
    """Why there is no schedule: how far the budget is from the cheapest one."""
    end = min(next(iter(tables.values()))) if final is None else final
    cuts = [(min(tables), end)] if end < tokens else []
    cheapest = Schedule.of_counts(cuts, tokens).cost(tokens, depth, limit.work, limit.cut, limit.kept)
    everything = Schedule().cost(tokens, depth, limit.work, kept=limit.kept)
    return (
        f"no schedule keeps to this budget, {limit.most / everything:.1%} of what all visual tokens cost: with {end} "
        f"of {tokens} from the first layer on it is {cheapest / everything:.1%}; allow more, or a smaller keep ratio"
    )


def _least(tables: Errors, tokens: int, depth: int, limit: Limit, final: int | None, most: int) -> list[_Cuts]:
    """The `most` schedules of least charge, or as many as there are."""
    # Tokens present -> (cost, charge, schedule so far), none of them worse in both than `most` others.
    fronts: _Fronts = {tokens: [(0.0, 0.0, ())]}
    for layer in range(-1, depth):
        if layer >= 0 and not limit.kept:
            fronts = _run(fronts, limit)
        if layer in tables:
            fronts = _cut(fronts, layer, tables[layer], most, limit)
        if layer >= 0 and limit.kept:
            fronts = _run(fronts, limit)
    reached = [state for count, front in fronts.items() if final is None or count == final for state in front]
    best = sorted(reached, key=lambda state: (state[1], state[0], state[2]))
    return [cuts for _, _, cuts in best[:most]]


def _just_above(cuts: _Cuts, tables: Errors, final: int | None) -> Iterator[_Cuts]:
    """A schedule is a staircase over the layers: those in which the first layers of one stair are raised."""
    layers, counts = sorted(tables), sorted(next(iter(tables.values())), reverse=True)
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


def _run(fronts: _Fronts, limit: Limit) -> _Fronts:
    """A layer is paid for, by the tokens present."""
    return {
        count: [(cost + work, charge, cuts) for cost, charge, cuts in front if cost + work <= limit.most]
        for count, front in fronts.items()
        for work in (limit.work(count),)
    }


def _cut(fronts: _Fronts, layer: int, table: Mapping[int, float], most: int, limit: Limit) -> _Fronts:
    """Every way to go on after `layer`, with as many tokens or fewer."""
    reached: _Fronts = {count: list(front) for count, front in fronts.items()}
    for before, front in fronts.items():
        for after in table:
            if after < before:
                charge = table[after] - table[before]
                moved = [
                    (cost + limit.cut, so_far + charge, (*cuts, (layer, after)))
                    for cost, so_far, cuts in front
                    if cost + limit.cut <= limit.most
                ]
                reached.setdefault(after, []).extend(moved)
    return {count: _undominated(front, most) for count, front in reached.items()}


def _undominated(states: list[_State], most: int) -> list[_State]:
    """Those that fewer than `most` others are as good as in both."""
    kept: list[_State] = []
    charges: list[float] = []
    for state in sorted(states):
        if bisect_right(charges, state[1]) < most:
            kept.append(state)
            insort(charges, state[1])
    return kept
