"""Which schedule a budget buys, by what calibration has measured: the one way for `compress`, `rebudget` and frontier.

Single cuts are measured (quota/allocation/drops.py). Of the few schedules within the budget that are best if errors of
cuts add up (quota/allocation/solver.py) the one of least error is taken: measured whole, or, where the calibration set
is not at hand, expected. What is expected of a schedule that was measured whole is that; of any other

    scale * (what its cuts add up to)        scale: geometric mean of measured / added up, of those measured whole
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from quota.allocation.budget import Budget
from quota.allocation.measurements import Measurements
from quota.allocation.paper import paper_schedule
from quota.allocation.solver import Limit, best_schedules
from quota.allocation.table import SMALLEST, Errors, charge, with_count
from quota.errors import QuotaError
from quota.pruning.schedule import Schedule, keep_count, layer_work

TRIED = 16
"""Schedules that are compared whole."""


class Expected:
    """The error that is expected of schedules, in nats: called with one."""

    def __init__(self, measured: Measurements) -> None:
        self._errors, self._tokens, self._whole = measured.errors, measured.reference_tokens, measured.whole()
        ratios = [(error + SMALLEST) / (self._added(one) + SMALLEST) for one, error in self._whole.items()]
        self._scale = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else 1.0

    def measured(self, schedule: Schedule) -> bool:
        """Whether this one was measured whole, or drops nothing."""
        alike = self._alike(schedule)
        return alike in self._whole or not alike.layers

    def __call__(self, schedule: Schedule) -> float:
        """Raises QuotaError for a layer or a count that the table does not reach."""
        alike = self._alike(schedule)
        return self._whole[alike] if alike in self._whole else self._scale * self._added(alike)

    def _added(self, schedule: Schedule) -> float:
        return charge(self._errors, schedule, self._tokens)

    def _alike(self, schedule: Schedule) -> Schedule:
        """The same by its counts, as schedules are measured, without cuts that drop nothing."""
        counts = schedule.counts(self._tokens)
        cuts = zip(schedule.layers, counts, [self._tokens, *counts], strict=False)
        return Schedule.of_counts([(layer, count) for layer, count, before in cuts if count < before], self._tokens)


def limit_of(budget: Budget, measured: Measurements, text_config: Any) -> Limit:
    """What schedules may cost under `budget`. QuotaError if that is out of reach, or needs a missing clock."""
    tokens, depth = measured.reference_tokens, measured.depth
    if budget.kv_bytes is not None:
        return measured.cache.limit(budget.kv_bytes, tokens, depth)
    work, clock = layer_work(tokens, text_config), measured.clock
    if budget.compute is not None:
        return compute_limit(budget.compute, depth, work)
    if budget.milliseconds is None:
        published = paper_schedule(measured.curves, budget.final or 1.0)
        return compute_limit(published.compute(tokens, depth, text_config), depth, work)
    if clock is None:
        raise QuotaError("a budget of milliseconds needs a clock, and no machine was timed")
    return compute_limit(clock.compute(budget.milliseconds), depth, work, clock.charge)


def compute_limit(share: float, depth: int, work: Callable[[int], float], cut: float = 0.0) -> Limit:
    """For a share of the unpruned prefill arithmetic; `work` is relative to all tokens, and so is that of a `cut`."""
    return Limit(share * depth + 1e-9, work, cut)


def choose(
    budget: Budget, measured: Measurements, text_config: Any, whole: Callable[[Schedule], float] | None = None
) -> Schedule:
    """The schedule of least error within `budget`: as `whole` measures it, or as it is expected.

    Raises QuotaError if the budget is too small, or its final ratio below what was measured.
    """
    tokens = measured.reference_tokens
    return best_measured(
        measured.errors,
        Expected(measured) if whole is None else whole,
        tokens,
        measured.depth,
        budget.final,
        limit_of(budget, measured, text_config),
    )


def best_measured(
    errors: Errors,
    whole: Callable[[Schedule], float],
    tokens: int,
    depth: int,
    keep: float | None,
    limit: Limit,
    tried: int = TRIED,
) -> Schedule:
    """The schedule of least error that ends at `keep` and keeps to `limit`.

    `errors` are those of single cuts; None leaves the end open. `whole` gives the error of a schedule, and is asked for
    `tried` of them at most. Raises QuotaError if the budget is too small.
    """
    final = None if keep is None else keep_count(keep, tokens)
    table = errors if final is None else with_count(errors, final, tokens)
    best = best_schedules(table, tokens, depth, limit, final, tried)
    # Sorted, so that those that begin at one layer are measured one behind the other.
    found = min(sorted(best, key=lambda one: list(zip(one.layers, one.counts(tokens), strict=True))), key=whole)
    # A recipe that drops nothing still has a layer.
    found = found if found.layers else Schedule((min(errors),), (1.0,))
    return found if keep is None else Schedule(found.layers, (*found.ratios[:-1], keep))
