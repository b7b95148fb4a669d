"""The loop over decoder layers, in which a pass of several requests loses visual tokens.

It does what a text model of transformers does, for rows [N, D] in place of a batch: rotary tables at the positions
that vLLM gives, each layer, the last norm. Behind a layer that cuts, rows and tables go on with what is kept; at the
end rows are where they were, zero where a token was dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from quota.attention.turns import turn_table
from quota.models import Family
from quota.pruning.ranking import Choice, rank
from quota.pruning.recipe import PruningRecipe
from quota.scheme import QuantizationScheme
from quota.serving.vllm.attention import Now, PackedAttention, attach
from quota.serving.vllm.batch import Part
from quota.serving.vllm.layer import PackedLayer
from quota.serving.vllm.turns import StoredTurns

Watcher = Callable[[Part, int, Choice], None]
"""(a request's part, the layer that cuts, what it has chosen)"""


class Decoder:
    """The decoder of a model under a scheme, and a recipe if it has one."""

    def __init__(
        self, family: Family, layers: Sequence[PackedLayer], scheme: QuantizationScheme, recipe: PruningRecipe | None
    ) -> None:
        self.text: Any = family.text_model
        self.scheme = scheme
        self.recipe = recipe
        self.watchers: list[Watcher] = []
        """Told of every cut."""
        self.turns = StoredTurns()
        self._turning = any(layer.turning is not None for layer in layers)
        self._attention = [PackedAttention(layer, scheme, recipe, self.turns) for layer in layers]
        for layer, attention in zip(family.decoder_layers, self._attention, strict=True):
            attach(layer.self_attn, attention)

    def __call__(
        self, hidden: Tensor, positions: Tensor, parts: Sequence[Part], blocks: Callable[[str], Tensor]
    ) -> Tensor:
        """hidden [N, D] at `positions` [N] or [3, N] -> [N, D]; `blocks` gives a layer's block tables by its name."""
        rows = hidden
        tables = self.text.rotary_emb(hidden[None], position_ids=positions.unsqueeze(-2))
        order: Tensor | None = None
        if self.recipe is not None and -1 in self.recipe.layers:
            self._choose_first(hidden, parts)
            hidden, tables, order = self._cut(-1, hidden, tables, order, parts)
        for attention, layer in zip(self._attention, self.text.layers, strict=True):
            index = attention.layer.index
            table = turn_table(*tables) if self._turning else None
            attention.now = Now(parts, hidden, blocks(attention.layer.name), table)
            hidden = layer(hidden[None], attention_mask=None, position_embeddings=tables, past_key_values=None)[0]
            hidden, tables, order = self._cut(index, hidden, tables, order, parts)
        hidden = self.text.norm(hidden)
        return hidden if order is None else torch.zeros_like(rows).index_copy_(0, order, hidden)

    def _choose_first(self, hidden: Tensor, parts: Sequence[Part]) -> None:
        """The choice in front of the first layer, where no attention is to be seen."""
        assert self.recipe is not None
        start = 0
        for part in parts:
            if part.presence is not None and part.presence.has_images:
                entering = hidden[None, start : start + part.prompt]
                part.choice = rank(part.presence, entering, None, None, self.recipe, -1, self.scheme)
            start += part.rows

    def _cut(
        self, index: int, hidden: Tensor, tables: tuple[Tensor, ...], order: Tensor | None, parts: Sequence[Part]
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        """Go on behind layer `index` with the rows that parts have chosen; `order` is where rows were at first."""
        if all(part.choice is None for part in parts):
            return hidden, tables, order
        kept, start = [], 0
        for part in parts:
            places = torch.arange(part.rows, device=hidden.device)
            choice, part.choice, presence = part.choice, None, part.presence
            if choice is not None and presence is not None:
                for watcher in self.watchers:
                    watcher(part, index, choice)
                if not choice.all_kept:
                    presence.cut(index, choice.cut, hidden[None, start : start + part.prompt], None)
                    places = torch.cat([choice.cut.slots[0], places[part.prompt :]])
            kept.append(start + places)
            start += part.rows
            part.rows = len(places)
        rows = torch.cat(kept)
        order = rows if order is None else order[rows]
        return hidden[rows], tuple(table[:, rows] for table in tables), order
