"""Scores from a full-precision forward pass, tokens dropped in the quantised one.

The regime (docs/method.md) forbids it. Before every prompt the full-precision model (with the same recipe, less the
risk it does not have) runs once; what it keeps is what the quantised model keeps. It costs a second model and a second
prefill, and is here to measure what scoring under W4A4 loses or gains against it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from quota.attention.observation import Observation
from quota.ops.choice import Cut
from quota.pruning.presence import Presence
from quota.pruning.pruner import Pruner, record
from quota.pruning.ranking import Choice
from quota.pruning.recipe import PruningRecipe
from quota.scheme import QuantizationScheme


class GuidedPruner(Pruner):
    """Keeps what `guide`, a model with a Pruner over the same candidate layers, keeps of the same prompt."""

    def __init__(
        self, model: PreTrainedModel, recipe: PruningRecipe, scheme: QuantizationScheme | None, guide: PreTrainedModel
    ) -> None:
        super().__init__(model, recipe, scheme)
        self._guide = guide
        self._kept: dict[int, Tensor] = {}

    def attach(self) -> Self:
        super().attach()
        self._handles.append(self.model.register_forward_pre_hook(self._ask_the_guide, with_kwargs=True))
        return self

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        # Inside of `generate`, images are encoded before the first forward pass, which then has no pixels.
        self._ask_the_guide(self.model, args, kwargs)
        return super()._generate(*args, **kwargs)

    def _ask_the_guide(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs.get("pixel_values") is None:
            return
        names = ("input_ids", "attention_mask", "pixel_values")
        with torch.inference_mode(), record(self._guide) as trace:
            self._guide(**{name: kwargs[name] for name in names}, use_cache=False, logits_to_keep=1)
        self._kept = trace.kept

    def _rank(self, index: int, presence: Presence, hidden: Tensor, observation: Observation | None) -> Choice:
        choice = super()._rank(index, presence, hidden, observation)
        chosen = (presence.numbers[:, :, None] == self._kept[index][:, None]).any(dim=2)
        return replace(choice, cut=Cut.of(presence.text | (presence.visual & chosen)))
