"""What the method "quota" measures on a quantised model, and the schedule that it comes to.

The table of single cuts, what the typical prompt takes, and the few schedules that promise most, measured whole
(quota/allocation/choose.py). All of it is given back with the schedule, for other budgets later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from quota.allocation.budget import DEFAULT_KEEP, Budget
from quota.allocation.cache_cost import cache_cost
from quota.allocation.choose import TRIED, choose
from quota.allocation.clock import Clock, machine_of, prefill_clock
from quota.allocation.drops import RATIOS, Drops, candidates, layers_run
from quota.allocation.measurements import Measurements, Tried
from quota.allocation.prompt import TypicalPrompt, typical_inputs
from quota.calibration.sweep import Calibration
from quota.calibration.work import forward_work
from quota.models import family, fingerprint
from quota.progress import Meter
from quota.pruning.schedule import Schedule
from quota.pruning.scorers.information import NAME
from quota.ranks import ALONE, Ranks
from quota.samples import Sample
from quota.scheme import QuantizationScheme


class Search:
    """Finds the schedule of one model, once it is quantised and has its KV cache."""

    def __init__(self, model: PreTrainedModel, budget: Budget, tokens: int, meter: Meter, ranks: Ranks = ALONE) -> None:
        """Plans its work, which is in proportion to the `tokens` of this rank: before the model is quantised."""
        self._model, self._budget, self._meter, self._ranks = model, budget, meter, ranks
        self._depth = len(family(model).decoder_layers)
        self._ratios = sorted({*RATIOS, budget.final or DEFAULT_KEEP} - {1.0}, reverse=True)
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
        drawn: str,
        scheme: QuantizationScheme,
        calibration: Calibration,
    ) -> tuple[Schedule, Measurements]:
        """The schedule within the budget, and all that was measured; `drawn` is the fingerprint of the `samples`.

        Raises QuotaError if the budget is too small.
        """
        model, tokens = self._model, calibration.reference_tokens
        prompt = TypicalPrompt.of(samples[calibration.typical])
        inputs = typical_inputs(model, processor, prompt, tokens)
        cache = cache_cost(model, inputs, tokens)
        drops = Drops(model, processor, samples, scheme, tokens, ranks=self._ranks)
        clock = None if self._budget.milliseconds is None else self._clock(inputs, tokens, scheme)
        measured = Measurements.of(
            model_fingerprint=fingerprint(model),
            calibration_fingerprint=drawn,
            scheme=scheme,
            scorer=NAME,
            reference_tokens=tokens,
            curves=calibration.curves,
            errors=drops.table(self._depth, NAME, self._ratios, self._measured),
            prompt=prompt,
            cache=cache,
            clock=clock,
        )
        whole = Whole(partial(drops.error, scorer=NAME), measured, lambda: self._meter.add(self._whole))
        found = choose(self._budget, measured, model.config.get_text_config(), whole)
        self._meter.add((TRIED - whole.asked) * self._whole)
        return found, whole.remembered()

    def _clock(self, inputs: Any, tokens: int, scheme: QuantizationScheme) -> Clock:
        """That of the first rank; the others do nothing meanwhile."""

        def timed() -> tuple[float, ...]:
            found = prefill_clock(self._model, inputs, tokens, scheme, NAME)
            return found.rest, found.layer, found.cut, found.full

        rest, layer, cut, full = self._ranks.told(4, timed)
        return Clock(rest, layer, cut, self._depth, full, machine_of(self._model.device))

    def _measured(self, done: int, total: int) -> None:
        """Progress of the table of single cuts."""
        share = self._single * done // total
        self._meter.add(share - self._told)
        self._told = share


class Whole:
    """Errors of whole schedules: those that are in the measurements, and others that are measured when asked for."""

    def __init__(
        self, measure: Callable[[Schedule], float], measured: Measurements, step: Callable[[], None] = lambda: None
    ) -> None:
        """`step` is called after each that is measured."""
        self._measure, self._measured, self._step = measure, measured, step
        self._known = measured.whole()
        self.asked = 0
        """How many were measured."""

    def __call__(self, schedule: Schedule) -> float:
        if schedule not in self._known:
            self._known[schedule] = self._measure(schedule)
            self.asked += 1
            self._step()
        return self._known[schedule]

    def remembered(self) -> Measurements:
        """The measurements, with these among them."""
        tokens = self._measured.reference_tokens
        tried = [
            Tried(layers=one.layers, counts=tuple(one.counts(tokens)), error=error)
            for one, error in sorted(self._known.items(), key=lambda item: (item[0].layers, item[0].ratios))
        ]
        return self._measured.model_copy(update={"tried": tuple(tried)})
