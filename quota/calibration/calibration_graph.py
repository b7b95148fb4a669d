"""The graph that a calibration runs in: all visual tokens, or those that a recipe leaves.

A deployed model is pruned, so from the first candidate layer on its layers read other tokens than an unpruned
calibration shows them. In the pruned graph the sweep ranks the visual tokens of every sample from its own deployed
stream, as the Pruner does, at every candidate layer and before the first layer if the recipe says so, and both streams
go on without the others: what is then collected and measured is of the tokens that a deployed model has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from quota.attention.cache import adopt
from quota.attention.function import Observation
from quota.calibration.blocks import Beside
from quota.errors import QuotaError
from quota.models.family import Family
from quota.models.images import encode, split_frames
from quota.pruning.presence import Presence
from quota.pruning.ranking import rank
from quota.pruning.recipe import PruningRecipe
from quota.pruning.scorers import scorer
from quota.scheme import QuantizationScheme


class PrunedGraph:
    """Which tokens of every sample are left, layer by layer, under a recipe."""

    def __init__(
        self,
        family: Family,
        inputs: Sequence[Mapping[str, Any]],
        beside: Sequence[Beside],
        recipe: PruningRecipe,
        scheme: QuantizationScheme,
    ) -> None:
        """`beside` is what the first decoder layer is called with, for each sample of `inputs`.

        Raises QuotaError for a recipe that asks the tower which tokens to drop: the sweep does not keep its attention.
        """
        if "tower" in scorer(recipe.scorer).SIGNALS:
            raise QuotaError(f"scorer {recipe.scorer!r} reads the tower's attention; calibrate in the unpruned graph")
        self.family = family
        self.recipe = recipe
        self.scheme = scheme
        self._presences = [self._presence(given, first) for given, first in zip(inputs, beside, strict=True)]

    def visual(self, sample: int) -> Tensor:
        """[1, T] bool: which of the tokens left are visual."""
        return self._presences[sample].images >= 0

    def beside(self, index: int, sample: int, hidden: Tensor, beside: Beside) -> Beside:
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
        return Beside(beside.args, given, added)

    def cut(self, index: int, sample: int, hidden: Tensor, observation: Observation | None) -> Tensor | None:
        """Choose among the tokens that entered layer `index` as `hidden`: bool [T], None if all of them stay.

        At -1 they are yet to enter the first layer, and there is nothing observed.
        """
        presence = self._presences[sample]
        if index not in self.recipe.layers:
            return None
        choice = rank(presence, hidden, observation, None, self.recipe, index, self.scheme)
        if choice.all_kept:
            return None
        presence.cut(index, choice.cut, hidden, None)
        return choice.cut.kept[0]

    def _presence(self, given: Mapping[str, Any], beside: Beside) -> Presence:
        arguments = dict(given)
        if self.family.encodes_first:
            arguments = encode(self.family.base, arguments)
        images = self.family.index_images(given["input_ids"], arguments)
        if self.family.frames_in_positions:
            images = split_frames(images, beside.kwargs.get("position_ids"))
        blocks = self.family.blocks and self.family.blocks(given, 0)
        return Presence(images, torch.ones_like(images), 0, self.family.causal, blocks)
