"""The part of `compress` that the published method does not have: measure what drops do, and find the schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from transformers import PreTrainedModel

from quota.allocation.clock import prefill_clock
from quota.allocation.drops import RATIOS, SCORER, Drops, candidates, layers_run
from quota.allocation.paper import Cuts, published_compute
from quota.allocation.solver import Errors, best_schedules
from quota.attention.hook import attach_cache
from quota.calibration.storage import Storage
from quota.calibration.sweep import Calibration, Progress
from quota.calibration.work import forward_work
from quota.models import family
from quota.prompts import build_inputs
from quota.pruning.schedule import Schedule, keep_count, prefill_flops_ratio
from quota.samples import Sample
from quota.scheme import QuantizationScheme


class MeasuredCuts:
    """Finds the cuts of one model, once its sweep is done."""

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any,
        samples: Sequence[Sample],
        scheme: QuantizationScheme,
        keep: float,
        progress: Progress | None,
        storage: Storage,
    ) -> None:
        self.model, self.processor, self.samples = model, processor, samples
        self.storage = storage
        self.scheme, self.keep = scheme, keep
        self.depth = len(family(model).decoder_layers)
        self.ratios = sorted({*RATIOS, keep} - {1.0}, reverse=True)
        tokens = sum(build_inputs(processor, [sample])["input_ids"].numel() for sample in self.samples)
        # Linears are quantised by the time they run.
        decoder = forward_work([linear for _, linear in family(model).linears(["decoder"])], tokens)
        single = sum(layers_run(layer, self.depth, ratio) for layer in candidates(self.depth) for ratio in self.ratios)
        self.single_cuts = round(single * decoder / self.depth)
        # Schedules take about half of the arithmetic: only the bar of progress depends on it.
        self.whole = TRIED * round(decoder / 2)
        self._progress = progress
        self._swept = 0

    def sweeping(self, done: int, total: int) -> None:
        """Progress of the sweep, which comes before the drops."""
        self._swept = total
        self._show(done)

    def cuts(self, calibration: Calibration, compute: float | None, milliseconds: float | None) -> Cuts:
        """Within `compute`, or a prefill of so many `milliseconds`, or else what the published schedule would spend."""
        tokens, config = calibration.reference_tokens, self.model.config.get_text_config()
        charge = 0.0
        self.storage.assemble()
        cache = attach_cache(self.model, self.scheme)
        tried = count(1)
        try:
            if milliseconds is not None:
                clock = prefill_clock(self.model, self._typical(tokens), tokens, self.scheme)
                compute, charge = clock.compute(milliseconds), clock.charge
            elif compute is None:
                compute = published_compute(calibration.curves, tokens, self.keep, config)
            drops = Drops(self.model, self.processor, self.samples, self.scheme, tokens)
            errors = drops.table(
                self.depth, self.ratios, lambda done, total: self._show(self._swept + self.single_cuts * done // total)
            )

            def whole(schedule: Schedule) -> float:
                error = drops.error(schedule)
                self._show(self._swept + self.single_cuts + self.whole * next(tried) // TRIED)
                return error

            found = quota_cuts(errors, whole, tokens, self.depth, self.keep, compute, config, cut=charge)
        finally:
            # The pipeline attaches its own, once the recipe is there.
            cache.detach()
        self._show(self._swept + self.single_cuts + self.whole)
        return found

    def _typical(self, tokens: int) -> Any:
        """The model's arguments for a sample whose visual tokens are as near to `tokens` as any."""
        masks = family(self.model)

        def distance(sample: Sample) -> int:
            return abs(int(masks.visual_mask(build_inputs(self.processor, [sample])["input_ids"]).sum()) - tokens)

        nearest = min(self.samples, key=distance)
        return build_inputs(self.processor, [nearest]).to(self.model.device)

    def _show(self, done: int) -> None:
        if self._progress is not None:
            self._progress(done, self._swept + self.single_cuts + self.whole)


TRIED = 16
"""Schedules that are measured whole."""


def quota_cuts(
    errors: Errors,
    whole: Callable[[Schedule], float],
    tokens: int,
    depth: int,
    keep: float | None,
    compute: float,
    text_config: Any,
    tried: int = TRIED,
    cut: float = 0.0,
) -> Cuts:
    """The schedule of least error that ends at `keep` and takes at most `compute` of the unpruned prefill arithmetic.

    `errors` are those of single cuts, with an entry for `keep` of `tokens` at every layer; None leaves the end open.
    `whole` measures a schedule, and is asked for `tried` of them at most. A cut itself is charged as so much of a layer
    with all tokens (quota/allocation/clock.py). Raises QuotaError if the budget is too small.
    """

    def work(count: int) -> float:
        return prefill_flops_ratio([count], tokens, text_config)

    final = None if keep is None else keep_count(keep, tokens)
    best = best_schedules(errors, tokens, depth, work, compute * depth + 1e-9, final, tried, cut)
    # Sorted, so that those that begin at one layer are measured one behind the other.
    schedule = min(sorted(best), key=whole)
    # A recipe that drops nothing still has a layer.
    schedule = schedule or ((min(errors), tokens),)
    ratios = [count / tokens for _, count in schedule]
    if keep is not None:
        ratios[-1] = keep
    return Cuts(tuple(layer for layer, _ in schedule), tuple(ratios), SCORER)
