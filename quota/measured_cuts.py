"""The part of `compress` that the published method does not have: measure what drops do, and find the schedule."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

from transformers import PreTrainedModel

from quota.budget import Schedule
from quota.calibration import Calibration, Progress
from quota.drop_errors import RATIOS, Drops, candidates, layers_run
from quota.method import TRIED, Cuts, published_compute, quota_cuts
from quota.models import family
from quota.prefill_clock import prefill_clock
from quota.quantization.kv_cache import attach_cache
from quota.residence import Residence
from quota.samples import Sample, build_inputs
from quota.scheme import QuantizationScheme
from quota.work import forward_work


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
        residence: Residence,
    ) -> None:
        self.model, self.processor, self.samples = model, processor, samples
        self.residence = residence
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
        self.residence.assemble()
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
