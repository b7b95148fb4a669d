"""The schedule of the method "quota": the one of least measured error within a budget of prefill arithmetic or time.

Single cuts are measured (quota/allocation/drops.py); the few schedules that are best if errors of cuts add up
(quota/allocation/solver.py) are measured whole, and the best of them is taken. It ends at the final keep ratio that is
asked for, and unless told otherwise spends what the published method would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedModel

from quota.allocation.clock import prefill_clock
from quota.allocation.drops import RATIOS, Drops, candidates, layers_run
from quota.allocation.paper import paper_schedule
from quota.allocation.solver import Errors, best_schedules
from quota.calibration.sweep import Calibration
from quota.calibration.work import forward_work
from quota.models import family
from quota.progress import Meter
from quota.prompts import build_inputs
from quota.pruning.schedule import Schedule, keep_count, layer_work
from quota.ranks import ALONE, Ranks
from quota.samples import Sample
from quota.scheme import QuantizationScheme

TRIED = 16
"""Schedules that are measured whole."""


class Search:
    """Finds the schedule of one model, once it is quantised and has its KV cache."""

    def __init__(self, model: PreTrainedModel, keep: float, tokens: int, meter: Meter, ranks: Ranks = ALONE) -> None:
        """Plans its work, which is in proportion to the `tokens` of this rank: before the model is quantised."""
        self._model, self._keep, self._meter, self._ranks = model, keep, meter, ranks
        self._depth = len(family(model).decoder_layers)
        self._ratios = sorted({*RATIOS, keep} - {1.0}, reverse=True)
        decoder = forward_work([linear for _, linear in family(model).linears(["decoder"])], tokens)
        runs = sum(layers_run(layer, self._depth, ratio) for layer in candidates(self._depth) for ratio in self._ratios)
        self._single = round(runs * decoder / self._depth)
        # Schedules take about half of the arithmetic: only the bar of progress depends on it.
        self._whole = round(decoder / 2)
        self._told = 0
        meter.plan(self._single + TRIED * self._whole)

    def run(
        self,
        processor: Any,
        samples: Sequence[Sample],
        scheme: QuantizationScheme,
        calibration: Calibration,
        compute: float | None = None,
        milliseconds: float | None = None,
    ) -> Schedule:
        """Within `compute`, or a prefill of so many `milliseconds`, or else what the published schedule would spend.

        Raises QuotaError if the budget is too small.
        """
        model, tokens, config = self._model, calibration.reference_tokens, self._model.config.get_text_config()
        charge = 0.0
        if milliseconds is not None:
            typical, allowed = samples[calibration.typical], milliseconds

            def timed() -> tuple[float, float]:
                clock = prefill_clock(model, build_inputs(processor, [typical]).to(model.device), tokens, scheme)
                return clock.compute(allowed), clock.charge

            # The other ranks do nothing meanwhile.
            compute, charge = self._ranks.told(2, timed)
        elif compute is None:
            compute = paper_schedule(calibration.curves, self._keep).compute(tokens, self._depth, config)
        drops = Drops(model, processor, samples, scheme, tokens, ranks=self._ranks)
        errors = drops.table(self._depth, self._ratios, self._measured)
        asked = 0

        def whole(schedule: Schedule) -> float:
            nonlocal asked
            error = drops.error(schedule)
            asked += 1
            self._meter.add(self._whole)
            return error

        found = best_measured(errors, whole, tokens, self._depth, self._keep, compute, config, cut=charge)
        self._meter.add((TRIED - asked) * self._whole)
        return found

    def _measured(self, done: int, total: int) -> None:
        """Progress of the table of single cuts."""
        share = self._single * done // total
        self._meter.add(share - self._told)
        self._told = share


def best_measured(
    errors: Errors,
    whole: Callable[[Schedule], float],
    tokens: int,
    depth: int,
    keep: float | None,
    compute: float,
    text_config: Any,
    tried: int = TRIED,
    cut: float = 0.0,
) -> Schedule:
    """The schedule of least error that ends at `keep` and takes at most `compute` of the unpruned prefill arithmetic.

    `errors` are those of single cuts, with an entry for `keep` of `tokens` at every layer; None leaves the end open.
    `whole` measures a schedule, and is asked for `tried` of them at most. A cut itself is charged as so much of a layer
    with all tokens (quota/allocation/clock.py). Raises QuotaError if the budget is too small.
    """
    final = None if keep is None else keep_count(keep, tokens)
    work = layer_work(tokens, text_config)
    best = best_schedules(errors, tokens, depth, work, compute * depth + 1e-9, final, tried, cut)
    # Sorted, so that those that begin at one layer are measured one behind the other.
    found = min(sorted(best, key=lambda one: list(zip(one.layers, one.counts(tokens), strict=True))), key=whole)
    # A recipe that drops nothing still has a layer.
    found = found if found.layers else Schedule((min(errors),), (1.0,))
    return found if keep is None else Schedule(found.layers, (*found.ratios[:-1], keep))
