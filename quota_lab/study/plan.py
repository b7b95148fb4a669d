"""From a `Pruning` and what calibration has measured to the recipe that a Pruner runs."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quota.allocation.choose import TRIED, best_measured, compute_limit
from quota.allocation.clock import Clock
from quota.allocation.paper import candidate_layers, paper_schedule
from quota.allocation.table import Errors
from quota.calibration.curves import Curves
from quota.errors import QuotaError
from quota.pruning.recipe import PruningRecipe, without_risk
from quota.pruning.schedule import Schedule, layer_work
from quota.pruning.scorers import scorer
from quota.scheme import QuantizationScheme
from quota_lab.study.schedules import keep_for_cost, ratios
from quota_lab.study.variants import MEASURED, Pruning

_TIMED = (0.6, 0.4, 0.25)
"""Prefill arithmetic at which a method is timed."""


@dataclass(frozen=True)
class Measured:
    """What recipes are made from: the curves of one calibration, and the sizes of the model."""

    curves: Curves
    tokens: int
    """V0, visual tokens of one image."""
    text_config: Any
    model_fingerprint: str
    errors: Errors | None = None
    """What single cuts do to the answer (quota/allocation/drops.py), for the schedule "measured"."""
    whole: Callable[[Schedule], float] | None = None
    """What a schedule does to it."""
    clock: Callable[[], Clock] | None = None
    """How long a prefill takes by its schedule, for budgets of time."""
    times: Callable[[list[PruningRecipe | None]], list[float]] | None = None
    """Milliseconds of a prefill under each recipe, and of one without."""

    @property
    def depth(self) -> int:
        """Decoder layers."""
        return len(self.curves.sensitivity)

    def layers(self) -> tuple[int, ...]:
        """Candidate layers by the rule."""
        curves = self.curves
        rule = candidate_layers(curves.concentration, curves.concentration_iqr, curves.redundancy, self.depth)
        return tuple(rule)

    def cost(self, schedule: Schedule) -> float:
        """Prefill arithmetic of the visual tokens, relative to keeping all."""
        return schedule.compute(self.tokens, self.depth, self.text_config)


def recipe(pruning: Pruning, measured: Measured, scheme: QuantizationScheme | None) -> PruningRecipe:
    """The recipe that `pruning` comes to under `scheme`. QuotaError if it states neither keep ratio nor cost."""
    return _recipe(pruning, measured, scheme, resolve(pruning, measured, scheme))


def _recipe(
    pruning: Pruning, measured: Measured, scheme: QuantizationScheme | None, schedule: Schedule
) -> PruningRecipe:
    weights = dict(scorer(pruning.scorer).WEIGHTS if pruning.weights is None else pruning.weights)
    return PruningRecipe(
        layers=schedule.layers,
        keep_ratios=schedule.ratios,
        keep=schedule.ratios[-1],
        temperature=pruning.temperature,
        reference_tokens=measured.tokens,
        scheme=scheme,
        scorer=pruning.scorer,
        weights=without_risk(weights) if scheme is None else weights,
        model_fingerprint=measured.model_fingerprint,
    )


def resolve(pruning: Pruning, measured: Measured, scheme: QuantizationScheme | None = None) -> Schedule:
    """The schedule that `pruning` comes to."""
    if pruning.prefill is not None:
        return _in_time(pruning, pruning.prefill, measured, scheme)
    target = pruning.compute
    if pruning.as_costly_as is not None:
        target = reference_cost(pruning.as_costly_as, measured)
    if pruning.schedule in MEASURED:
        return _measured(pruning, target, measured)
    if pruning.schedule == "withdraw":
        return _withdraw(target, measured)
    layers = _layers(pruning, measured)

    def at(keep: float) -> Schedule:
        # Before the decoder nothing is measured; such a schedule has one cut and needs no sensitivity.
        sensitivities = [measured.curves.sensitivity[max(layer, 0)] for layer in layers]
        return Schedule(layers, tuple(ratios(pruning.schedule, sensitivities, keep, pruning.temperature)))

    if target is not None:
        return at(keep_for_cost(target, measured.tokens, lambda share: measured.cost(at(share))))
    if pruning.keep is None:
        raise QuotaError("a variant of the study states a final keep ratio or a cost, but this one neither")
    return at(pruning.keep)


def reference_cost(keep: float, measured: Measured) -> float:
    """What the published schedule costs with this final keep ratio."""
    return measured.cost(paper_schedule(measured.curves, keep))


def _in_time(pruning: Pruning, share: float, measured: Measured, scheme: QuantizationScheme | None) -> Schedule:
    """What `pruning` can do in this share of the time that a prefill takes with all tokens."""
    if measured.clock is None or measured.times is None:
        raise QuotaError("a share of the prefill time needs a clock")
    if pruning.schedule in MEASURED:
        clock = measured.clock()
        return _measured(pruning, clock.compute(share * clock.full), measured, clock.charge)

    def within(share: float) -> Schedule:
        return resolve(pruning.model_copy(update={"prefill": None, "compute": share}), measured, scheme)

    # Its cuts take another time than ours, so it has a line of its own.
    tried = [within(share) for share in _TIMED]
    full, *taken = measured.times([None, *(_recipe(pruning, measured, scheme, one) for one in tried)])
    slope, rest = statistics.linear_regression([measured.cost(one) for one in tried], taken)
    # No less than nothing: the least that the method can do is then what it gets.
    return within(max(1e-6, (share * full - rest) / slope))


def _measured(pruning: Pruning, target: float | None, measured: Measured, cut: float = 0.0) -> Schedule:
    if measured.errors is None or measured.whole is None or (target is None and pruning.keep is None):
        raise QuotaError("the schedule 'measured' needs the errors of drops, and a final keep ratio or a cost")
    if target is None:
        target = reference_cost(pruning.keep or 1.0, measured)
    return best_measured(
        measured.errors,
        measured.whole,
        measured.tokens,
        measured.depth,
        pruning.keep,
        compute_limit(target, measured.depth, layer_work(measured.tokens, measured.text_config), cut),
        1 if pruning.schedule == "added up" else TRIED,
    )


def _layers(pruning: Pruning, measured: Measured) -> tuple[int, ...]:
    if pruning.depths is not None:
        return tuple(sorted({round(share * measured.depth) - 1 for share in pruning.depths}))
    return measured.layers() if pruning.layers is None else pruning.layers


def _withdraw(target: float | None, measured: Measured) -> Schedule:
    if target is None:
        raise QuotaError("the schedule 'withdraw' has no final keep ratio; state a cost")
    tried = [Schedule((layer,), (1 / measured.tokens,)) for layer in range(-1, measured.depth)]
    return max((one for one in tried if measured.cost(one) <= target), key=lambda one: one.layers, default=tried[0])
