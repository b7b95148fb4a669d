"""Calibrate the quantiser in a graph that drops visual tokens: what it reads is then what a deployed model has.

The product's sweep (quota/calibration/sweep.py) sees every visual token. Here both of its streams lose, behind each
candidate layer, what a recipe drops there, so Hessians and curves are of the tokens that are left. Who chooses them:

    JointSweep   the recipe, from the sweep's own deployed stream, as the Pruner does
    GivenSweep   the same recipe in the full-precision model: the stage-wise baseline "prune, then quantise"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from quota.attention.cache import adopt
from quota.attention.observation import Observation
from quota.calibration.blocks import Beside
from quota.calibration.storage import Storage
from quota.calibration.sweep import Sweep
from quota.errors import QuotaError
from quota.models.images import encode
from quota.ops.choice import Cut
from quota.progress import Meter, Progress
from quota.pruning.presence import Presence, images_of
from quota.pruning.pruner import Pruner, record
from quota.pruning.ranking import rank
from quota.pruning.recipe import PruningRecipe
from quota.pruning.scorers import scorer
from quota.scheme import QuantizationScheme

Kept = list[dict[int, Tensor]]
"""For every sample, candidate layer -> numbers of the visual tokens that go on."""


class JointSweep(Sweep):
    """A sweep in the graph that `recipe` prunes, of whose own forward passes the scores are."""

    def __init__(
        self,
        model: PreTrainedModel,
        inputs: Sequence[Mapping[str, Any]],
        scheme: QuantizationScheme,
        recipe: PruningRecipe,
        progress: Progress | None = None,
    ) -> None:
        """QuotaError for a recipe that asks the tower which tokens to drop: the sweep does not keep its attention."""
        if "tower" in scorer(recipe.scorer).SIGNALS:
            raise QuotaError(f"scorer {recipe.scorer!r} reads the tower's attention; calibrate in the unpruned graph")
        super().__init__(model, inputs, scheme, Storage(), Meter(progress))
        self._recipe = recipe
        self._presences: list[Presence] = []

    def _enter_decoder(self) -> None:
        super()._enter_decoder()
        firsts = [chain[0] for chain in self.beside]
        self._presences = [self._presence(*each) for each in zip(self.inputs, firsts, strict=True)]
        for sample in range(len(self.inputs)):
            self._drop(-1, sample, self.deployed[sample], None)

    def _called_with(self, index: int, sample: int) -> tuple[Beside, Beside]:
        exact, deployed = super()._called_with(index, sample)
        hidden = self.deployed[sample]
        return self._fitting(index, sample, hidden, exact), self._fitting(index, sample, hidden, deployed)

    def _leave(self, index: int, sample: int, leaving: Tensor, observation: Observation) -> None:
        entered = self.deployed[sample]
        self.deployed[sample] = leaving
        self._drop(index, sample, entered, observation)

    def _drop(self, index: int, sample: int, entered: Tensor, observation: Observation | None) -> None:
        """Go on with what is left behind layer `index` (-1: before the first); `entered` [1, T, D] has entered it."""
        kept = self._cut(index, sample, entered, observation)
        if kept is not None:
            self.deployed[sample] = self.deployed[sample][:, kept]
            self.exact[sample] = self.exact[sample][:, kept]
            self.visual[sample] = self._presences[sample].images >= 0

    def _cut(self, index: int, sample: int, hidden: Tensor, observation: Observation | None) -> Tensor | None:
        """Choose among the tokens that entered layer `index` as `hidden`: bool [T], None if all of them stay."""
        if index not in self._recipe.layers:
            return None
        presence = self._presences[sample]
        choice = rank(presence, hidden, observation, None, self._recipe, index, self.scheme)
        if choice.all_kept:
            return None
        presence.cut(index, choice.cut, hidden, None)
        return choice.cut.kept[0]

    def _fitting(self, index: int, sample: int, hidden: Tensor, beside: Beside) -> Beside:
        """`beside` of the outer loop, made to fit the tokens that enter decoder layer `index` as `hidden` [1, T, D]."""
        presence = self._presences[sample]
        if presence.whole:
            return beside
        cache = DynamicCache()
        adopt(cache, self.family.decoder_layers, None)
        config, window = self.family.text_model.config, self.family.window(index)
        given = presence.arguments(index, hidden, beside.kwargs | {"past_key_values": cache}, config, window)
        given |= {"past_key_values": beside.kwargs.get("past_key_values")}
        added = None if beside.added is None else beside.added[:, presence.index[0]]
        return replace(beside, kwargs=given, added=added)

    def _presence(self, given: Mapping[str, Any], beside: Beside) -> Presence:
        arguments = dict(given)
        if self.family.encodes_first:
            arguments = encode(self.family.base, arguments)
        images = images_of(self.family, arguments)
        return Presence.of(self.family, arguments, images, beside.kwargs.get("position_ids"))


class GivenSweep(JointSweep):
    """A sweep in the graph that the full-precision model has pruned."""

    def __init__(
        self,
        model: PreTrainedModel,
        inputs: Sequence[Mapping[str, Any]],
        scheme: QuantizationScheme,
        recipe: PruningRecipe,
        progress: Progress | None = None,
    ) -> None:
        """`recipe` is one without a scheme."""
        super().__init__(model, inputs, scheme, recipe, progress)
        self._kept = kept_in_full_precision(model, inputs, recipe)

    def _cut(self, index: int, sample: int, hidden: Tensor, observation: Observation | None) -> Tensor | None:
        if index not in self._kept[sample]:
            return None
        presence = self._presences[sample]
        stays = (presence.images < 0) | torch.isin(presence.numbers, self._kept[sample][index])
        presence.cut(index, Cut.of(stays), hidden, None)
        return stays[0]


def kept_in_full_precision(model: PreTrainedModel, inputs: Sequence[Mapping[str, Any]], recipe: PruningRecipe) -> Kept:
    """What `recipe`, one without a scheme, keeps of every sample (one a batch) in the model as it is."""
    kept: Kept = []
    with Pruner(model, recipe):
        for sample in inputs:
            with torch.inference_mode(), record(model) as trace:
                model(**sample, use_cache=False, logits_to_keep=1)
            kept.append({layer: numbers[0].clone() for layer, numbers in trace.kept.items()})
    return kept
