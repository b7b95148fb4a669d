"""Calibrate the quantiser on the pruned graph: the stage-wise baseline "prune, then quantise".

The recipe runs in full precision first, and what it keeps of every calibration sample is noted. Then the usual sweep
(quota/calibration/sweep.py) goes through the model, but both of its streams lose, behind each candidate layer, what was
dropped there. So Hessians and curves are of the tokens that the pruned model sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from quota.attention.function import Observation
from quota.calibration.blocks import Beside
from quota.calibration.calibration_graph import PrunedGraph
from quota.calibration.sweep import Progress, Sweep
from quota.models.family import Family
from quota.ops.choice import Cut
from quota.pruning.pruner import Pruner, record
from quota.pruning.recipe import PruningRecipe
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
    """A sweep in the graph that the full-precision model has pruned."""

    def __init__(
        self,
        model: PreTrainedModel,
        inputs: Sequence[Mapping[str, Any]],
        scheme: QuantizationScheme,
        recipe: PruningRecipe,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(model, inputs, scheme, progress, recipe)
        self._kept = kept_in_full_precision(model, inputs, recipe)

    def _pruned_graph(self, first: list[Beside], recipe: PruningRecipe) -> PrunedGraph:
        return GivenGraph(self.family, self.inputs, first, recipe, self.scheme, self._kept)


class GivenGraph(PrunedGraph):
    """A pruned graph in which it is known beforehand what goes on."""

    def __init__(
        self,
        family: Family,
        inputs: Sequence[Mapping[str, Any]],
        beside: Sequence[Beside],
        recipe: PruningRecipe,
        scheme: QuantizationScheme,
        kept: Kept,
    ) -> None:
        super().__init__(family, inputs, beside, recipe, scheme)
        self._kept = kept

    def cut(self, index: int, sample: int, hidden: Tensor, observation: Observation | None) -> Tensor | None:
        if index not in self._kept[sample]:
            return None
        presence = self._presences[sample]
        number = ((presence.all_images >= 0).cumsum(dim=1) - 1).gather(1, presence.index)
        stays = (presence.images < 0) | torch.isin(number, self._kept[sample][index])
        presence.cut(index, Cut.of(stays), hidden, None)
        return stays[0]
