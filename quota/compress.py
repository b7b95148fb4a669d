"""The pipeline: quantise, calibrate, allocate, and leave the model ready to run.

    compress        W4A4KV4 and a recipe: what this package is for
    quantize_only   the same quantisation, every visual token kept
    prune_only      a recipe on a full-precision model

The last two are the parts of the first one alone, and what it is compared with. Quantisation and calibration are one
sweep (quota/calibration/sweep.py); its curves, and by default the measured errors of drops, become a recipe
(quota/allocation/search.py); a quantised KV cache and a Pruner are then attached to the model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any, get_args

from transformers import PreTrainedModel

from quota import ops
from quota.allocation.paper import Method, candidate_layers, keep_ratios, paper_cuts
from quota.allocation.search import MeasuredCuts
from quota.attention.hook import attach_cache
from quota.calibration.curves import Curves
from quota.calibration.rounds import Graph, as_graph, calibrate_in
from quota.calibration.storage import InMemory, Storage
from quota.calibration.sweep import Calibration, Progress, calibrate
from quota.calibration.token_weights import check_share
from quota.checkpoint.save import mark, settings
from quota.errors import QuotaError
from quota.models import family, fingerprint
from quota.prompts import build_inputs
from quota.pruning.pruner import Pruner
from quota.pruning.recipe import PruningRecipe
from quota.samples import Sample
from quota.samples import fingerprint as samples_fingerprint
from quota.scheme import QuantizationScheme
from quota.version import __version__

DEFAULT_SCHEME = QuantizationScheme()


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
    sweeps: int
    """How often the model was calibrated: more than once in another graph than the unpruned one."""
    settled: bool
    """Whether the recipe had stopped to change by then."""

    @property
    def sensitivities(self) -> list[float]:
        """S_l of equation (1) for every decoder layer."""
        return self.curves.sensitivity


def compress(
    model: PreTrainedModel,
    processor: Any,
    samples: Sequence[Sample],
    keep: float = 0.30,
    scheme: QuantizationScheme = DEFAULT_SCHEME,
    layers: Sequence[int] | None = None,
    temperature: float = 1.25,
    seed: int = 0,
    progress: Progress | None = None,
    graph: Graph = "unpruned",
    visual_share: float | None = None,
    method: Method = "quota",
    compute: float | None = None,
    milliseconds: float | None = None,
    storage: Storage | None = None,
) -> CompressionResult:
    """Quantise `model` in place and make it drop visual tokens by a recipe calibrated for it.

    Args:
        samples: calibration questions (no answers needed); 128 of them are the published setting.
        keep: share of visual tokens left after the last candidate layer, in (0, 1].
        scheme: what is quantised and how.
        layers: of the method "paper", candidate decoder layers, to override the rule of `candidate_layers`.
        temperature: of "paper", tau of equation (3).
        seed: recorded in the recipe as the one that `samples` were drawn with. Nothing here is random.
        progress: called with the work done and its total, in multiplications (quota/calibration/work.py); other graphs
            start it
            anew for every sweep.
        graph: "unpruned", "pruned" or "joint": the graph that is calibrated in (quota/calibration/rounds.py).
        visual_share: what visual tokens count for when weights are rounded (quota/calibration/token_weights.py); None:
        all alike. method: "quota", by the measured errors of drops, or "paper", the published one. compute: of
        "quota", the largest share of the unpruned prefill arithmetic of visual tokens to spend; None: what
            "paper" would spend on the same model.
        milliseconds: of "quota", instead of `compute`: the longest that the prefill of a typical sample may take on
            this machine (quota/allocation/clock.py), which should do nothing else meanwhile.
        storage: where the model's blocks are, if not in memory; `compress_folder` gives it, for one sweep.

    Raises QuotaError, before anything is changed, for options out of range, no samples, an unsupported architecture
    or a model that is compressed already. If the sweep itself fails the model is half quantised: load it anew.
    """
    began = time.perf_counter()
    _check_options(model, keep, method, compute, milliseconds, layers, temperature, graph)
    check_share(visual_share)
    inputs = _inputs(model, processor, samples)
    place = storage or InMemory()
    drops = MeasuredCuts(model, processor, samples, scheme, keep, progress, place) if method == "quota" else None

    def make_recipe(calibration: Calibration) -> PruningRecipe:
        curves = calibration.curves
        cuts = (
            paper_cuts(curves, keep, temperature, layers)
            if drops is None
            else drops.cuts(calibration, compute, milliseconds)
        )
        return PruningRecipe(
            method=method,
            layers=cuts.layers,
            keep_ratios=cuts.keep_ratios,
            keep=keep,
            temperature=temperature,
            sensitivities=tuple(curves.sensitivity[layer] for layer in cuts.layers) if drops is None else (),
            scorer=cuts.scorer,
            reference_tokens=calibration.reference_tokens,
            scheme=scheme,
            model_fingerprint=fingerprint(model),
            calibration_fingerprint=samples_fingerprint(samples),
            samples=len(samples),
            seed=seed,
            versions={"quota": __version__, **{name: version(name) for name in ("torch", "transformers")}},
        )

    with ops.record() as operators:
        report = progress if drops is None else drops.sweeping
        sweep = partial(calibrate, model, inputs, scheme, report, visual_share=visual_share, storage=place)
        found = calibrate_in(graph, model, sweep, make_recipe)
    attach_cache(model, scheme)
    Pruner(model, found.recipe, scheme).attach()
    mark(model, scheme, recipe=True)
    seconds = time.perf_counter() - began
    calibration = found.calibration
    return CompressionResult(
        found.recipe, scheme, calibration.curves, calibration.quantized, seconds, operators, found.sweeps, found.settled
    )


def quantize_only(
    model: PreTrainedModel,
    processor: Any,
    samples: Sequence[Sample],
    scheme: QuantizationScheme = DEFAULT_SCHEME,
    progress: Progress | None = None,
    visual_share: float | None = None,
) -> Calibration:
    """Quantise `model` in place exactly as `compress` does, and keep every visual token. Errors as `compress`."""
    calibration = calibrate(model, _inputs(model, processor, samples), scheme, progress, visual_share=visual_share)
    attach_cache(model, scheme)
    mark(model, scheme, recipe=False)
    return calibration


def _inputs(model: PreTrainedModel, processor: Any, samples: Sequence[Sample]) -> Sequence[Any]:
    """The model's arguments for every sample, and the model ready for them."""
    _check_uncompressed(model)
    _check_sees(model)
    if not samples:
        raise QuotaError("calibration needs at least one sample; 128 are the published setting")
    model.eval()
    return Streamed(processor, samples, model.get_input_embeddings().weight.device)


class Streamed(Sequence[Any]):
    """The model's arguments for each sample, made anew whenever they are asked for: pictures are not held."""

    def __init__(self, processor: Any, samples: Sequence[Sample], device: Any) -> None:
        self._processor, self._samples, self._device = processor, samples, device

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: Any) -> Any:
        return build_inputs(self._processor, [self._samples[index]]).to(self._device)


def prune_only(model: PreTrainedModel, recipe: PruningRecipe) -> PruningRecipe:
    """Make a full-precision `model` drop tokens by the layers and ratios of `recipe`, and return the recipe it runs.

    That recipe has no scheme, and a score without risk: the other weights grow in proportion to fill its place.
    Raises QuotaError for a recipe of another model, or a model that is compressed already.
    """
    _check_uncompressed(model)
    _check_sees(model)
    weights = {name: weight for name, weight in recipe.weights.items() if name != "risk"}
    total = sum(weights.values())
    pruned = PruningRecipe(
        **recipe.model_dump(exclude={"scheme", "weights"}),
        scheme=None,
        weights={name: weight / total for name, weight in weights.items()},
    )
    Pruner(model, pruned).attach()
    return pruned


def _check_uncompressed(model: PreTrainedModel) -> None:
    if settings(model.config) is not None:
        raise QuotaError("the model is quantised already; load the original one")


def _check_sees(model: PreTrainedModel) -> None:
    if not family(model).sees:
        raise QuotaError(f"{type(model).__name__} has no vision tower; give a vision-language model")


def _check_options(
    model: PreTrainedModel,
    keep: float,
    method: Method,
    compute: float | None,
    milliseconds: float | None,
    layers: Sequence[int] | None,
    temperature: float,
    graph: Graph,
) -> None:
    _check_sees(model)
    if method not in get_args(Method):
        raise QuotaError(f"unknown method {method!r}; choose one of {', '.join(get_args(Method))}")
    if method == "quota" and layers is not None:
        raise QuotaError('layers are chosen by method="paper" only; leave them out, or ask for that method')
    as_graph(graph)
    if compute is not None and (method == "paper" or not 0 < compute <= 1):
        raise QuotaError(f'compute must be above 0 and at most 1, and goes with method="quota"; got {compute}')
    if milliseconds is not None and (method == "paper" or compute is not None or milliseconds <= 0):
        raise QuotaError('milliseconds must be positive, and go with method="quota" and no compute')
    total = len(family(model).decoder_layers)
    # The rules themselves say what they refuse, on any numbers; better now than after the sweep.
    keep_ratios([0.0], keep, temperature)
    if layers is None:
        candidate_layers([0.0] * total, [0.0] * total, [0.0] * total, total)
    elif not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= total:
        raise QuotaError(f"layers must be ascending numbers from 0 to {total - 1}, got {list(layers)}")
