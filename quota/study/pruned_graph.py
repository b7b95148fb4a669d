"""Calibrate the quantiser on the pruned graph: the stage-wise baseline "prune, then quantise".

The recipe runs in full precision first, and what it keeps of every calibration sample is noted. Then the usual sweep
(quota/calibration.py) goes through the model, but both of its streams lose, behind each candidate layer, what was
dropped there. So Hessians and curves are of the tokens that the pruned model sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from quota.blocks import Beside
from quota.calibration import Progress, Sweep
from quota.pruning import Pruner, record
from quota.recipe import PruningRecipe
from quota.scheme import QuantizationScheme

Kept = list[dict[int, Tensor]]
"""For every sample, candidate layer -> numbers of the visual tokens that go on."""


def kept_in_full_precision(model: PreTrainedModel, inputs: Sequence[Mapping[str, Any]], recipe: PruningRecipe) -> Kept:
    """What `recipe`, one without a scheme, keeps of every sample (one a batch) in the model as it is."""
    pruner = Pruner(model, recipe).attach()
    kept: Kept = []
    try:
        for sample in inputs:
            with torch.inference_mode(), record(model) as trace:
                model(**sample, use_cache=False, logits_to_keep=1)
            kept.append({layer: numbers[0].clone() for layer, numbers in trace.kept.items()})
    finally:
        pruner.detach()
    return kept


class PrunedSweep(Sweep):
    """A sweep whose streams are cut behind the candidate layers."""

    def __init__(
        self,
        model: PreTrainedModel,
        inputs: Sequence[Mapping[str, Any]],
        scheme: QuantizationScheme,
        kept: Kept,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(model, inputs, scheme, progress)
        self._kept = kept
        self._numbers = [torch.arange(int(visual.sum())) for visual in self.visual]

    def _decoder_layer(self, index: int) -> None:
        super()._decoder_layer(index)
        for sample, kept in enumerate(self._kept):
            if index in kept:
                self._cut(sample, index, kept[index])

    def _cut(self, sample: int, layer: int, kept: Tensor) -> None:
        """Take away what `layer` drops from both streams of one sample, and from what later layers are called with."""
        visual = self.visual[sample][0]
        stays = ~visual
        stays[visual] = torch.isin(self._numbers[sample], kept)
        self._numbers[sample] = kept
        places = stays.nonzero().flatten()
        self.visual[sample] = self.visual[sample][:, places]
        self.exact[sample] = self.exact[sample][:, places]
        self.deployed[sample] = self.deployed[sample][:, places]
        chain = self.beside[sample]
        tables = tuple(table[:, places] for table in chain[layer].kwargs["position_embeddings"])
        # One sample is not padded, so attention is causal without a mask.
        changes = {"position_embeddings": tables, "position_ids": None, "attention_mask": None}
        chain[layer + 1 :] = [Beside(beside.args, beside.kwargs | changes) for beside in chain[layer + 1 :]]
