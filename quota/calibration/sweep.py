"""Calibration: one sweep over the model that quantises it and measures it, block by block.

Two streams of hidden states go through the decoder side by side for every sample:

    x_l    full precision: the original model
    xq_l   deployed: quantised tower, projector and layers before l, attention over the quantised KV cache

At each block the Hessians of its linears are collected on the deployed stream (so each block is quantised knowing the
errors of those before it), its linears are replaced, and both streams go one block on. On the way the sweep takes the
curves that the recipe is made from, per decoder layer l:

    sensitivity    (1)  S_l = median over samples of ||xq_l - x_l||_2 / (||x_l||_2 + eta)
    concentration       how much of a text token's attention goes to the ten visual tokens that get most of it,
                        averaged over heads and text tokens: median over samples, and inter-quartile range
    redundancy          median cosine of two visual tokens of xq_l: median over samples

All of it comes from the deployed operators. Samples run one at a time: nothing is padded, so no padding is counted,
and only two tensors a sample are held, whatever the depth of the model. Nothing is drawn at random.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from quota.attention.cache import adopt
from quota.attention.function import Observation, observe
from quota.attention.keys import NAME as KEY_TRANSFORM
from quota.attention.moments import KeyMoments, watch
from quota.calibration.blocks import Beside, capture, put, quantize_linears, run, run_all
from quota.calibration.calibration_graph import PrunedGraph
from quota.calibration.curves import Curves, attention_concentration, median_cosine, relative_error, sensitivity
from quota.calibration.storage import InMemory, Storage
from quota.calibration.token_weights import check_share, token_weights
from quota.calibration.work import block_work
from quota.errors import QuotaError
from quota.models import family
from quota.pruning.recipe import PruningRecipe
from quota.quantization.folding import fold
from quota.scheme import QuantizationScheme

Progress = Callable[[int, int], None]
"""Called with the work done so far and its total, in multiplications (quota/calibration/work.py)."""


@dataclass(frozen=True)
class Calibration:
    """What a sweep found out."""

    curves: Curves
    reference_tokens: int
    """V0: visual tokens of a sample, the median if samples differ."""
    quantized: int
    """Linear layers replaced."""


def calibrate(
    model: PreTrainedModel,
    inputs: Sequence[Mapping[str, Any]],
    scheme: QuantizationScheme,
    progress: Progress | None = None,
    recipe: PruningRecipe | None = None,
    visual_share: float | None = None,
    storage: Storage | None = None,
) -> Calibration:
    """Quantise the linears of `model` in place and measure its decoder layers on the way.

    `inputs` are the model's arguments for one sample each (`input_ids` [1, L] and the rest, as `build_inputs` makes
    them). The KV cache is taken to be quantised but is not attached. With a `recipe` the decoder is calibrated and
    measured in the graph that it prunes (quota/calibration/calibration_graph.py). `visual_share` is what visual tokens
    count for, in (0, 1), when the decoder's weights are rounded (quota/calibration/token_weights.py); without it all
    tokens count alike. `storage` is where the blocks are, in memory if it is not given.

    Raises QuotaError for no inputs, an unsupported architecture, or a sample without a picture or without text.
    """
    return Sweep(model, inputs, scheme, progress, recipe, visual_share, storage).run()


class Sweep:
    """The state of one calibration: two hidden states a sample, and what every decoder layer is called with."""

    def __init__(
        self,
        model: PreTrainedModel,
        inputs: Sequence[Mapping[str, Any]],
        scheme: QuantizationScheme,
        progress: Progress | None = None,
        recipe: PruningRecipe | None = None,
        visual_share: float | None = None,
        storage: Storage | None = None,
    ) -> None:
        if not inputs:
            raise QuotaError("calibration needs at least one sample")
        check_share(visual_share)
        self.model = model
        self.family = family(model)
        self.inputs = inputs
        self.scheme = scheme
        self.layers = list(self.family.decoder_layers)
        self.visual = [self.family.visual_mask(sample["input_ids"]) for sample in inputs]
        for number, visual in enumerate(self.visual):
            if self.family.sees and (not visual.any() or visual.all()):
                raise QuotaError(f"calibration sample {number} needs both a picture and text")
        self.linears: dict[str, nn.Linear] = {}
        # 16 bits on both sides is the layer as it is.
        if scheme.weight_bits < 16 or scheme.activation_bits < 16:
            self.linears = dict(self.family.linears(scheme.modules))
        self.quantized = len(self.linears)
        self.storage = storage or InMemory()
        self.curves = Curves()
        self._recipe = recipe
        self._share = visual_share
        self._graph: PrunedGraph | None = None
        self._progress = progress
        self._work: dict[nn.Module, int] = {}
        self._done = self._total = 0

    @torch.no_grad()
    def run(self) -> Calibration:
        """The whole sweep, tower to last decoder layer."""
        front = [*self.family.tower_blocks, *self.family.projectors]
        for block in front:
            self.storage.fetch(block)
        self.exact, self.beside = self._capture(self.layers)
        self._plan_work()
        for blocks in (list(self.family.tower_blocks), *([projector] for projector in self.family.projectors)):
            self._quantize_chain(blocks)
        self.deployed, self.added = self._capture_deployed()
        for block in front:
            self.storage.release(block)
        tokens = [int(visual.sum()) for visual in self.visual]
        if self._recipe is not None:
            first = [chain[0] for chain in self.beside]
            self._graph = self._pruned_graph(first, self._recipe)
            for sample, entering in enumerate(self.deployed):
                self._step(-1, sample, entering, None)
        for index in range(len(self.layers)):
            self._decoder_layer(index)
        return Calibration(self.curves, statistics.median_low(tokens), self.quantized)

    def _pruned_graph(self, first: list[Beside], recipe: PruningRecipe) -> PrunedGraph:
        """The graph of `recipe`; `first` is what the first decoder layer is called with for every sample."""
        return PrunedGraph(self.family, self.inputs, first, recipe, self.scheme)

    def _capture(self, blocks: Sequence[nn.Module]) -> tuple[list[Tensor], list[list[Beside]]]:
        """What enters a chain of blocks for every sample, as the model is now."""
        captured = [capture(self.model, blocks, sample) for sample in self.inputs]
        return [hidden for hidden, _ in captured], [beside for _, beside in captured]

    def _capture_deployed(self) -> tuple[list[Tensor], list[list[Tensor | None]]]:
        """What enters the decoder, and what is added behind its layers: the rest is as in the exact stream."""
        entering, added = [], []
        for sample in self.inputs:
            hidden, chain = capture(self.model, self.layers, sample)
            entering.append(hidden)
            added.append([block.added for block in chain])
        return entering, added

    def _quantize_chain(self, blocks: Sequence[nn.Module]) -> None:
        """Quantise blocks in front of the decoder, where only the deployed stream is needed."""
        if not any(self._linears_of(block) for block in blocks):
            for block in blocks:
                self.storage.keep(block)
                self._report(block)
            return
        hidden, beside = self._capture(blocks)
        for index, block in enumerate(blocks):
            around = [chain[index] for chain in beside]
            advance = partial(_run_sample, block, hidden, around)
            if self.scheme.folds:
                self._fold(block, partial(run_all, advance, len(self.inputs)), partial(advance, 0))
            self._quantize(block, advance)
            if index + 1 < len(blocks):
                run_all(advance, len(self.inputs), hidden)
            self._report(block)

    def _decoder_layer(self, index: int) -> None:
        layer = self.layers[index]
        self.storage.fetch(layer)
        samples = range(len(self.inputs))
        beside = [chain[index] for chain in self.beside]
        around = [replace(one, added=added[index]) for one, added in zip(beside, self.added, strict=True)]
        if self._graph is not None:
            beside = [self._graph.beside(index, sample, self.deployed[sample], beside[sample]) for sample in samples]
            around = [self._graph.beside(index, sample, self.deployed[sample], around[sample]) for sample in samples]
        self._measure_tokens()
        advance = partial(self._run_deployed, layer, around)
        # In place: only one sample has both what enters and what leaves.
        run_exact = partial(run_all, partial(_run_sample, layer, self.exact, beside), len(self.inputs), self.exact)
        if self.scheme.folds:
            run_first = partial(run, layer, self.exact[0].clone(), beside[0])
            with watch(self.family.text_model.config) as moments:
                self._fold(layer, run_exact, run_first, cached=self.scheme.kv_bits < 16)
            self._attach_keys(layer, moments)
        else:
            run_exact()
        self._quantize(layer, advance, token_weights(self.visual, self._share))
        concentration = []
        for sample in samples:
            visual = self.visual[sample]
            observation = Observation(text=~visual, visual=visual, keys=torch.ones_like(visual))
            with observe(self.family.text_model.config, observation, self.family.causal):
                leaving = advance(sample)
            self._step(index, sample, leaving, observation)
            concentration.append(attention_concentration(observation, visual))
        low, middle, high = torch.tensor(concentration).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
        self.curves.concentration.append(middle)
        self.curves.concentration_iqr.append(high - low)
        self.storage.release(layer)
        self._report(layer)

    def _step(self, index: int, sample: int, leaving: Tensor, observation: Observation | None) -> None:
        """Go on behind layer `index` with its output; in a pruned graph with what the recipe leaves of it."""
        kept = None
        if self._graph is not None:
            kept = self._graph.cut(index, sample, self.deployed[sample], observation)
        put(self.deployed, sample, leaving)
        if self._graph is not None and kept is not None:
            self.deployed[sample], self.exact[sample] = leaving[:, kept], self.exact[sample][:, kept]
            self.visual[sample] = self._graph.visual(sample)

    def _run_deployed(self, layer: nn.Module, beside: list[Beside], sample: int) -> Tensor:
        """`layer` on the deployed stream of one sample, attending to what a new cache stores."""
        cache = DynamicCache()
        adopt(cache, self.family.decoder_layers, self.scheme)
        return run(layer, self.deployed[sample], beside[sample], past_key_values=cache)

    def _measure_tokens(self) -> None:
        """Sensitivity and redundancy of the layer that the streams now stand before."""
        pairs = zip(self.deployed, self.exact, strict=True)
        self.curves.sensitivity.append(sensitivity([relative_error(xq, x) for xq, x in pairs]))
        tokens = (xq[visual] for xq, visual in zip(self.deployed, self.visual, strict=True))
        self.curves.redundancy.append(statistics.median(median_cosine(hidden) for hidden in tokens))

    def _linears_of(self, block: nn.Module) -> dict[str, nn.Linear]:
        inside = set(block.modules())
        return {name: linear for name, linear in self.linears.items() if linear in inside}

    def _fold(
        self, block: nn.Module, run_each: Callable[[], Tensor], run_first: Callable[[], Tensor], cached: bool = False
    ) -> None:
        """Fold transforms into `block`, in front of its linears."""
        fold(block, set(self._linears_of(block).values()), run_each, run_first, cached)

    def _attach_keys(self, layer: Any, moments: KeyMoments) -> None:
        transform = moments.transform() if self.scheme.kv_bits < 16 else None
        if transform is not None:
            layer.self_attn.add_module(KEY_TRANSFORM, transform)

    def _quantize(
        self, block: nn.Module, advance: Callable[[int], Tensor], weights: list[Tensor] | None = None
    ) -> None:
        linears = self._linears_of(block)
        if linears and not self.storage.restore(block, linears):
            quantize_linears(self.model, linears, self.scheme, advance, len(self.inputs), weights)
        for name in linears:
            # The original would stay in memory as long as it is listed.
            del self.linears[name]
        self.storage.keep(block)

    def _plan_work(self) -> None:
        """What every block will take, as long as all of them are there."""
        blocks, samples = list(self.family.tower_blocks), len(self.inputs)
        if blocks:
            entering, _ = capture(self.model, blocks, self.inputs[0])
            self._plan([*blocks, *self.family.projectors], samples * entering[..., 0].numel())
        self._plan(self.layers, sum(visual.numel() for visual in self.visual))
        self._total = sum(self._work.values())

    def _plan(self, blocks: Sequence[nn.Module], tokens: int) -> None:
        for block in blocks:
            finished = not self._linears_of(block) or self.storage.finished(block)
            self._work[block] = block_work(block, tokens, finished, self.scheme.transforms == "trained")

    def _report(self, block: nn.Module) -> None:
        self._done += self._work[block]
        if self._progress is not None:
            self._progress(self._done, self._total)


def _run_sample(block: nn.Module, hidden: list[Tensor], beside: list[Beside], sample: int) -> Tensor:
    return run(block, hidden[sample], beside[sample])
