"""Calibration: one sweep over the model that quantises it and measures it, block by block.

Two streams of hidden states go through the decoder side by side for every sample:

    x_l    full precision: the original model
    xq_l   deployed: quantised embedding, tower, projector and layers before l, attention over the quantised KV cache

At each block the moments of its linears are collected (quota/calibration/moments.py), so that each block is quantised
knowing the errors of those before it; its linears are replaced, and both streams go one block on. The tower has both
streams as well, from its first block on; the projector, behind a quantised tower, the deployed one alone. On the way
the sweep takes the curves that the recipe is made from, per decoder layer l:

    sensitivity    (1)  S_l = median over samples of ||xq_l - x_l||_2 / (||x_l||_2 + eta)
    concentration       how much of a text token's attention goes to the ten visual tokens that get most of it,
                        averaged over heads and text tokens: median over samples, and inter-quartile range
    redundancy          median cosine of two visual tokens of xq_l: median over samples

All of it comes from the deployed operators. Samples run one at a time: nothing is padded, so no padding is counted,
and only three tensors a sample are held, whatever the depth of the model. Nothing is drawn at random. Samples may be
spread over several processes (quota/ranks.py): each runs its own, and what is measured is of all.
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

from quota.attention.cache import adopt, say_turns
from quota.attention.function import observe
from quota.attention.keys import NAME as KEY_TRANSFORM
from quota.attention.keys import key_bias
from quota.attention.moments import KeyMoments, watch
from quota.attention.observation import Observation
from quota.calibration.blocks import Beside, capture, put, quantize_linears, run, run_all
from quota.calibration.curves import Curves, attention_concentration, median_cosine, relative_error, sensitivity
from quota.calibration.storage import Storage
from quota.calibration.work import block_work
from quota.errors import QuotaError
from quota.models import family
from quota.progress import Meter, Progress
from quota.quantization.ends import quantize_ends
from quota.quantization.folding import fold
from quota.ranks import ALONE, Ranks
from quota.scheme import QuantizationScheme


@dataclass(frozen=True)
class Calibration:
    """What a sweep found out."""

    curves: Curves
    reference_tokens: int
    """V0: visual tokens of a sample, the median if samples differ."""
    typical: int
    """The number of a sample with so many."""
    quantized: int
    """Linear layers replaced."""


def calibrate(
    model: PreTrainedModel,
    inputs: Sequence[Mapping[str, Any]],
    scheme: QuantizationScheme,
    progress: Progress | None = None,
) -> Calibration:
    """A `Sweep` through a model in memory."""
    return Sweep(model, inputs, scheme, Storage(), Meter(progress)).run()


class Sweep:
    """The state of one calibration: two hidden states a sample, and what every decoder layer is called with."""

    @torch.no_grad()
    def __init__(
        self,
        model: PreTrainedModel,
        inputs: Sequence[Mapping[str, Any]],
        scheme: QuantizationScheme,
        storage: Storage,
        meter: Meter,
        ranks: Ranks = ALONE,
    ) -> None:
        """Runs `model` up to its decoder, changes nothing, and plans the work of `run`, in multiplications.

        `inputs` are the model's arguments for one sample each (`input_ids` [1, L] and the rest, as `build_inputs` makes
        them), those of this rank. Raises QuotaError for no inputs, an unsupported architecture, or a sample without a
        picture or text.
        """
        if not inputs:
            raise QuotaError("calibration needs at least one sample")
        self.model = model
        self.family = family(model)
        self.inputs = inputs
        self.scheme = scheme
        self.storage = storage
        self.ranks = ranks
        self.layers = list(self.family.decoder_layers)
        # 16 bits are the layer as it is.
        self.linears = dict(self.family.linears(scheme.modules)) if scheme.weight_bits < 16 else {}
        self.quantized = len(self.linears)
        self.curves = Curves()
        self._corrects = bool(self.linears) and scheme.weight_rounding == "corrected"
        self._front: list[nn.Module] = [*self.family.tower_blocks, *self.family.projectors]
        for block in self._front:
            storage.fetch(block)
        self.visual: list[Tensor] = []
        """[1, T] bool of each sample: which of its tokens are visual."""
        self.exact: list[Tensor] = []
        self.deployed: list[Tensor] = []
        self.beside: list[list[Beside]] = []
        self._ahead = [torch.empty(0)] * len(inputs)
        """The exact stream behind the layer that is worked on, where what enters is needed again."""
        for sample in inputs:
            self._take(sample)
        counts = [int(count) for count in ranks.gather([int(visual.sum()) for visual in self.visual])]
        self.reference_tokens = statistics.median_low(counts)
        self.typical = counts.index(self.reference_tokens)
        self._meter = meter
        self._work: dict[nn.Module, int] = {}
        self._plan_work()
        meter.plan(sum(self._work.values()))

    @property
    def tokens(self) -> int:
        """Of all samples of this rank."""
        return sum(visual.numel() for visual in self.visual)

    @torch.no_grad()
    def run(self) -> Calibration:
        """The whole sweep, tower to last decoder layer: quantises the linears of the model in place.

        The KV cache is taken to be quantised but is not attached.
        """
        for blocks in (list(self.family.tower_blocks), *([projector] for projector in self.family.projectors)):
            self._quantize_chain(blocks)
        quantize_ends(self.model, self.scheme)
        self._enter_decoder()
        for block in self._front:
            self.storage.release(block)
        for index in range(len(self.layers)):
            self._decoder_layer(index)
        return Calibration(self.curves, self.reference_tokens, self.typical, self.quantized)

    def _take(self, sample: Mapping[str, Any]) -> None:
        """What enters the decoder for one sample, in full precision."""
        visual = self.family.visual_mask(sample["input_ids"])
        if self.family.sees and (not visual.any() or visual.all()):
            number = self.ranks.rank + self.ranks.size * len(self.visual)
            raise QuotaError(f"calibration sample {number} needs both a picture and text")
        hidden, beside = capture(self.model, self.layers, sample)
        self.visual.append(visual)
        self.exact.append(hidden)
        self.beside.append(beside)

    def _enter_decoder(self) -> None:
        """What enters it now that all in front is quantised, and what is added behind its layers."""
        self.added: list[list[Tensor | None]] = []
        for sample in self.inputs:
            hidden, chain = capture(self.model, self.layers, sample)
            self.deployed.append(hidden)
            self.added.append([block.added for block in chain])

    def _quantize_chain(self, blocks: Sequence[nn.Module]) -> None:
        """Quantise blocks in front of the decoder, where only the deployed stream is needed."""
        if not any(self._linears_of(block) for block in blocks):
            for block in blocks:
                self.storage.keep(block)
                self._meter.add(self._work[block])
            return
        captured = [capture(self.model, blocks, sample) for sample in self.inputs]
        hidden = [entering for entering, _ in captured]
        # Without corrections one stream is enough.
        exact, ahead = ([x.clone() for x in hidden], [*self._ahead]) if self._corrects else (hidden, None)
        for index, block in enumerate(blocks):
            around = [chain[index] for _, chain in captured]
            advance = partial(_run_sample, block, hidden, around)
            meant = partial(_run_sample, block, exact, around)
            run_exact = partial(run_all, meant, len(self.inputs), ahead)
            if self.scheme.folds:
                self._fold(block, run_exact, partial(meant, 0))
            elif self._corrects:
                run_exact()
            self._quantize(block, advance, meant)
            if index + 1 < len(blocks):
                run_all(advance, len(self.inputs), hidden)
                if ahead is not None:
                    exact, ahead = ahead, exact
            self._meter.add(self._work[block])

    def _called_with(self, index: int, sample: int) -> tuple[Beside, Beside]:
        """What decoder layer `index` is called with in the two streams, exact and deployed, besides hidden states."""
        beside = self.beside[sample][index]
        return beside, replace(beside, added=self.added[sample][index])

    def _leave(self, index: int, sample: int, leaving: Tensor, observation: Observation) -> None:
        """Go on behind decoder layer `index` with its output in the deployed stream."""
        put(self.deployed, sample, leaving)

    def _decoder_layer(self, index: int) -> None:
        layer = self.layers[index]
        self.storage.fetch(layer)
        samples = range(len(self.inputs))
        beside, around = zip(*(self._called_with(index, sample) for sample in samples), strict=True)
        self._measure_tokens()
        advance = partial(self._run_deployed, layer, around)
        meant = partial(_run_sample, layer, self.exact, beside)
        # In place if what enters is not needed again: only one sample then has both that and what leaves.
        run_exact = partial(run_all, meant, len(self.inputs), self._ahead if self._corrects else self.exact)
        if self.scheme.folds:
            run_first = partial(run, layer, self.exact[0].clone(), beside[0])
            attention: Any = layer.self_attn
            moments = KeyMoments(key_bias(attention, self.family.text_model.config.num_key_value_heads))
            cached = self.scheme.kv_bits < 16

            def run_watched() -> Tensor:
                # Not the check of the fold: it would count the first sample twice.
                with watch(self.family.text_model.config, moments, attention):
                    return run_exact()

            self._fold(layer, run_watched if cached else run_exact, run_first, cached)
            if (transform := moments.transform(self.ranks)) is not None:
                attention.add_module(KEY_TRANSFORM, transform)
        else:
            run_exact()
        self._quantize(layer, advance, meant)
        if self._corrects:
            self.exact, self._ahead = self._ahead, self.exact
        concentration = []
        for sample in samples:
            visual = self.visual[sample]
            observation = Observation(text=~visual, visual=visual, keys=torch.ones_like(visual))
            with observe(self.family.text_model.config, observation, self.family.causal):
                leaving = advance(sample)
            self._leave(index, sample, leaving, observation)
            concentration.append(attention_concentration(observation, visual))
        low, middle, high = (
            torch.tensor(self.ranks.gather(concentration)).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
        )
        self.curves.concentration.append(middle)
        self.curves.concentration_iqr.append(high - low)
        self.storage.release(layer)
        self._meter.add(self._work[layer])

    def _run_deployed(self, layer: nn.Module, beside: Sequence[Beside], sample: int) -> Tensor:
        """`layer` on the deployed stream of one sample, attending to what a new cache stores."""
        cache = DynamicCache()
        adopt(cache, self.family.decoder_layers, self.scheme)
        say_turns(cache, 1, *beside[sample].kwargs["position_embeddings"])
        return run(layer, self.deployed[sample], beside[sample], past_key_values=cache)

    def _measure_tokens(self) -> None:
        """Sensitivity and redundancy of the layer that the streams now stand before."""
        errors = [relative_error(xq, x) for xq, x in zip(self.deployed, self.exact, strict=True)]
        self.curves.sensitivity.append(sensitivity(self.ranks.gather(errors)))
        cosines = [median_cosine(xq[visual]) for xq, visual in zip(self.deployed, self.visual, strict=True)]
        self.curves.redundancy.append(statistics.median(self.ranks.gather(cosines)))

    def _linears_of(self, block: nn.Module) -> dict[str, nn.Linear]:
        inside = set(block.modules())
        return {name: linear for name, linear in self.linears.items() if linear in inside}

    def _fold(
        self, block: nn.Module, run_each: Callable[[], Tensor], run_first: Callable[[], Tensor], cached: bool = False
    ) -> None:
        """Fold transforms into `block`, in front of its linears."""
        fold(block, set(self._linears_of(block).values()), run_each, run_first, cached, self.ranks)

    def _quantize(self, block: nn.Module, advance: Callable[[int], Tensor], meant: Callable[[int], Tensor]) -> None:
        """Quantise `block`, which `advance` runs on the deployed stream of a sample, and `meant` on the exact one."""
        linears = self._linears_of(block)
        if linears and not self.storage.restore(block, linears):
            quantize_linears(self.model, linears, self.scheme, advance, len(self.inputs), self.ranks, meant)
        for name in linears:
            # The original would stay in memory as long as it is listed.
            del self.linears[name]
        self.storage.keep(block)

    def _plan_work(self) -> None:
        """What every block will take, as long as all of them are there."""
        if blocks := list(self.family.tower_blocks):
            entering, _ = capture(self.model, blocks, self.inputs[0])
            self._plan([*blocks, *self.family.projectors], len(self.inputs) * entering[..., 0].numel())
        self._plan(self.layers, self.tokens)

    def _plan(self, blocks: Sequence[nn.Module], tokens: int) -> None:
        for block in blocks:
            finished = not self._linears_of(block) or self.storage.finished(block)
            self._work[block] = block_work(block, tokens, finished, self._corrects)


def _run_sample(block: nn.Module, hidden: list[Tensor], beside: Sequence[Beside], sample: int) -> Tensor:
    return run(block, hidden[sample], beside[sample])
