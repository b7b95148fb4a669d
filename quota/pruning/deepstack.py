"""DeepStack: features of several tower blocks, added to the visual tokens behind the first decoder layers.

The decoder's outer loop adds them at all visual positions of a prompt, which are no longer there once a layer has
dropped some. So the Pruner takes them out of the loop's hands and adds them to the tokens that are present.
(Meng et al., "DeepStack: Deeply Stacking Visual Tokens is Surprisingly Simple and Effective for LMMs", 2024.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from quota.pruning.presence import Presence

FEATURES, MASK = "deepstack_visual_embeds", "visual_pos_masks"


class DeepStack:
    """The features of one pass: for each of the first layers [N, D], N visual tokens of the whole batch in order."""

    def __init__(self, features: Sequence[Tensor], visual: Tensor) -> None:
        """`visual` [B, L] bool is where in the full-length pass the N tokens stand."""
        self.features = features
        self.visual = visual
        self.row = (visual.flatten().cumsum(0) - 1).view_as(visual)

    @classmethod
    def take(cls, kwargs: dict[str, Any]) -> tuple[DeepStack | None, dict[str, Any]]:
        """The features in a decoder's arguments, if any, and those arguments without them."""
        features = kwargs.get(FEATURES)
        if features is None:
            return None, kwargs
        return cls(features, kwargs[MASK]), kwargs | {FEATURES: None}

    def add(self, layer: int, hidden: Tensor, presence: Presence) -> Tensor:
        """The output of decoder layer `layer` [B, T, D], with its features at the visual tokens present."""
        if layer >= len(self.features):
            return hidden
        there = self.visual.gather(1, presence.index) & presence.filled
        rows = self.row.gather(1, presence.index)[there]
        hidden = hidden.clone()
        hidden[there] = hidden[there] + self.features[layer].to(hidden)[rows]
        return hidden
