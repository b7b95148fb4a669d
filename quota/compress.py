"""The pipeline: quantise, calibrate, allocate, and leave the model ready to run.

    compress        W4A4KV4 and a recipe: what this package is for
    quantize_only   the same quantisation, every visual token kept
    prune_only      a recipe on a full-precision model

The last two are the parts of the first one alone, and what it is compared with. Quantisation and calibration are one
sweep (quota/calibration/sweep.py); its curves, and by default the measured errors of drops, become a schedule
(quota/allocation); a quantised KV cache and a Pruner are then attached to the model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from transformers import PreTrainedModel

from quota import ops
from quota.allocation.budget import DEFAULT_KEEP, Budget
from quota.allocation.measurements import Measurements
from quota.allocation.paper import candidate_layers, keep_ratios, paper_schedule
from quota.allocation.search import Search
from quota.attention.operators import attach_operators
from quota.calibration.curves import Curves
from quota.calibration.storage import Storage
from quota.calibration.sweep import Calibration, Sweep, calibrate
from quota.checkpoint.save import mark, remember, settings
from quota.errors import QuotaError, first_problem
from quota.models import family, fingerprint
from quota.progress import Meter, Progress
from quota.prompts import build_inputs
from quota.pruning.pruner import Pruner, is_pruned
from quota.pruning.recipe import Method, PruningRecipe, without_risk
from quota.ranks import ALONE, Ranks
from quota.samples import Sample, in_order
from quota.scheme import QuantizationScheme
from quota.version import versions

DEFAULT_SCHEME = QuantizationScheme()


class Options(BaseModel):
    """How a model is compressed. Raises QuotaError, in one line, for names and values that are not allowed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep: float | None = None
    """Share of visual tokens left after the last layer that drops some, in (0, 1]. None: what serves `compute`,
    `milliseconds` or `kv_bytes` best, and 0.30 without them."""
    scheme: QuantizationScheme = DEFAULT_SCHEME
    """What is quantised and how."""
    method: Method = "quota"
    """ "quota", by the measured errors of drops, or "paper", the published one."""
    compute: float | None = None
    """Of "quota", the largest share of the unpruned prefill arithmetic of visual tokens to spend, in (0, 1]; None: what
    "paper" would spend on the same model."""
    milliseconds: float | None = None
    """Of "quota", instead of `compute`: the longest that the prefill of a typical sample may take on this machine
    (quota/allocation/clock.py), which should do nothing else meanwhile."""
    kv_bytes: float | None = None
    """Of "quota", instead of either: the most bytes that the KV cache may take after the prefill of a typical sample
    (quota/allocation/cache_cost.py)."""
    layers: tuple[int, ...] | None = None
    """Of "paper", candidate decoder layers, to override the rule of `candidate_layers`."""
    temperature: float = 1.25
    """Of "paper", tau of equation (3)."""
    seed: int = 0
    """Recorded in the recipe as the one that the samples were drawn with. Nothing here is random."""

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise QuotaError(first_problem(error)) from None

    @model_validator(mode="after")
    def _consistent(self) -> Options:
        limit = self.budget.limit
        # The equations themselves say what they refuse, on any numbers.
        keep_ratios([0.0], self.budget.final or DEFAULT_KEEP, self.temperature)
        if self.method == "quota" and self.layers is not None:
            raise QuotaError('layers are chosen by method="paper" only; leave them out, or ask for that method')
        if self.method == "paper" and limit is not None:
            raise QuotaError(f'{limit} must be left out with method="paper"; it goes with method="quota"')
        return self

    @property
    def budget(self) -> Budget:
        """What may be spent. QuotaError for two budgets, and for numbers out of range."""
        return Budget(self.keep, self.compute, self.milliseconds, self.kv_bytes)

    def check(self, model: PreTrainedModel) -> None:
        """Raise QuotaError for what this model cannot do: better before the sweep than after it."""
        total = len(family(model).decoder_layers)
        if self.layers is None:
            candidate_layers([0.0] * total, [0.0] * total, [0.0] * total, total)
            return
        layers = list(self.layers)
        if not layers or layers != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= total:
            raise QuotaError(f"layers must be ascending numbers from 0 to {total - 1}, got {layers}")


@dataclass(frozen=True)
class CompressionResult:
    """What was done to a model, and what was measured on the way."""

    recipe: PruningRecipe
    scheme: QuantizationScheme
    curves: Curves
    """One number a decoder layer each."""
    quantized: int
    """Linear layers replaced."""
    seconds: float
    operators: ops.Usage
    """The backends that ran in the sweep."""
    measurements: Measurements | None = None
    """Of method "quota", what other recipes can be made from (`quota.rebudget`)."""

    @property
    def sensitivities(self) -> list[float]:
        """S_l of equation (1) for every decoder layer."""
        return self.curves.sensitivity


def compress(
    model: PreTrainedModel,
    processor: Any,
    samples: Sequence[Sample],
    keep: float | None = None,
    *,
    progress: Progress | None = None,
    storage: Storage | None = None,
    ranks: Ranks = ALONE,
    **options: Any,
) -> CompressionResult:
    """Quantise `model` in place and make it drop visual tokens by a recipe calibrated for it.

    Args:
        samples: calibration questions (no answers needed), in any order; 128 of them are the published setting.
        keep: share of visual tokens left in the end, in (0, 1]; None is 0.30, or left open if a budget is given.
        progress: called with the work done and its total, in multiplications (quota/calibration/work.py).
        storage: where the model's blocks are, if not in memory; `compress_folder` gives it.
        ranks: the processes that share the samples, all of which are given here (quota/ranks.py).
        options: all others of `Options`, by their names.

    Raises QuotaError, before anything is changed, for options out of range, no samples, an unsupported architecture
    or a model that is compressed already. If the sweep itself fails the model is half quantised: load it anew.
    """
    began = time.perf_counter()
    chosen = Options(keep=keep, **options)
    _check_sees(model)
    chosen.check(model)
    samples, drawn = in_order(samples)
    inputs, scheme, meter = _inputs(model, processor, ranks.share(samples)), chosen.scheme, Meter(progress)
    storage = storage or Storage()
    with ops.record() as operators:
        sweep = Sweep(model, inputs, scheme, storage, meter, ranks)
        search = Search(model, chosen.budget, sweep.tokens, meter, ranks) if chosen.method == "quota" else None
        calibration = sweep.run()
        measurements = None
        if search is None:
            attach_operators(model, scheme)
            final = chosen.budget.final or DEFAULT_KEEP
            schedule = paper_schedule(calibration.curves, final, chosen.temperature, chosen.layers)
        else:
            storage.assemble()
            attach_operators(model, scheme)
            schedule, measurements = search.run(processor, samples, drawn, scheme, calibration)
    curves = calibration.curves
    recipe = PruningRecipe(
        method=chosen.method,
        layers=schedule.layers,
        keep_ratios=schedule.ratios,
        keep=schedule.ratios[-1],
        temperature=chosen.temperature,
        sensitivities=tuple(curves.sensitivity[layer] for layer in schedule.layers) if search is None else (),
        scorer="composite" if measurements is None else measurements.scorer,
        reference_tokens=calibration.reference_tokens,
        scheme=scheme,
        model_fingerprint=fingerprint(model),
        calibration_fingerprint=drawn,
        samples=len(samples),
        seed=chosen.seed,
        versions=versions("torch", "transformers"),
    )
    Pruner(model, recipe, scheme).attach()
    mark(model, scheme, recipe=True)
    if measurements is not None:
        remember(model, measurements)
    seconds = time.perf_counter() - began
    return CompressionResult(recipe, scheme, curves, calibration.quantized, seconds, operators, measurements)


def quantize_only(
    model: PreTrainedModel,
    processor: Any,
    samples: Sequence[Sample],
    scheme: QuantizationScheme = DEFAULT_SCHEME,
    progress: Progress | None = None,
) -> Calibration:
    """Quantise `model` in place exactly as `compress` does, and keep every visual token. Errors as `compress`."""
    samples, _ = in_order(samples)
    calibration = calibrate(model, _inputs(model, processor, samples), scheme, progress)
    attach_operators(model, scheme)
    mark(model, scheme, recipe=False)
    return calibration


def prune_only(model: PreTrainedModel, recipe: PruningRecipe) -> PruningRecipe:
    """Make a full-precision `model` drop tokens by the layers and ratios of `recipe`, and return the recipe it runs.

    That recipe has no scheme, and a score without risk. Raises QuotaError for a recipe of another model, or a model
    that is compressed already.
    """
    _check_uncompressed(model)
    _check_sees(model)
    pruned = PruningRecipe(
        **recipe.model_dump(exclude={"scheme", "weights"}), scheme=None, weights=without_risk(recipe.weights)
    )
    Pruner(model, pruned).attach()
    return pruned


def _inputs(model: PreTrainedModel, processor: Any, samples: Sequence[Sample]) -> Sequence[Any]:
    """The model's arguments for every sample, and the model ready for them."""
    _check_uncompressed(model)
    _check_sees(model)
    if not samples:
        raise QuotaError("calibration needs at least one sample; 128 are the published setting")
    model.eval()
    return _Streamed(processor, samples, model.get_input_embeddings().weight.device)


class _Streamed(Sequence[Any]):
    """The model's arguments for each sample, made anew whenever they are asked for: pictures are not held."""

    def __init__(self, processor: Any, samples: Sequence[Sample], device: Any) -> None:
        self._processor, self._samples, self._device = processor, samples, device

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: Any) -> Any:
        return build_inputs(self._processor, [self._samples[index]]).to(self._device)


def _check_uncompressed(model: PreTrainedModel) -> None:
    if settings(model.config) is not None:
        raise QuotaError("the model is quantised already; load the original one")
    if is_pruned(model):
        raise QuotaError("the model drops tokens already; detach its pruner, or load the original one")


def _check_sees(model: PreTrainedModel) -> None:
    if not family(model).sees:
        raise QuotaError(f"{type(model).__name__} has no vision tower; give a vision-language model")
