"""Attention of one decoder layer in one pass of several requests, to keys and values in packed blocks.

    a prompt     packed in one call, which gives what is read of it; attention to that, and what each token receives.
                 In a layer that cuts the choice is made here, and only what is kept is written to the blocks. Its tail
                 sees what is kept, as it did when it was decoded
    one token    packed and written, for all requests at once; then each query reads the rows of its request

The function is registered with transformers' `AttentionInterface` and finds its `PackedAttention` at the module that
calls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from quota import ops
from quota.attention.function import attend
from quota.attention.observation import Observation
from quota.attention.turns import turned, turned_logits
from quota.pruning.ranking import rank
from quota.pruning.recipe import PruningRecipe
from quota.pruning.scorers import scorer
from quota.scheme import QuantizationScheme
from quota.serving.vllm.batch import Part
from quota.serving.vllm.layer import PackedLayer
from quota.serving.vllm.pages import gather, slots
from quota.serving.vllm.stages import dropped
from quota.serving.vllm.turns import StoredTurns

NAME = "quota_vllm"
"""Of this attention, in a configuration."""


@dataclass
class Now:
    """What layers are told of the pass, before each of them runs."""

    parts: Sequence[Part]
    entering: Tensor
    """[N, D], what enters the layer."""
    blocks: Tensor
    """[requests, most blocks] of its group."""
    table: Tensor | None
    """[1, N, D], how far RoPE turns the rows; None if no layer wants to know."""


class PackedAttention:
    """Attention of one layer."""

    now: Now

    def __init__(
        self, layer: PackedLayer, scheme: QuantizationScheme, recipe: PruningRecipe | None, turns: StoredTurns
    ) -> None:
        """`turns` is shared by all layers."""
        self.layer = layer
        self.scheme = scheme
        self.turns = turns
        cuts = recipe is not None and layer.index in recipe.layers
        self.recipe = recipe if cuts else None
        """Of a layer that cuts."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """query [1, H, N, D], key and value [1, G, N, D] -> [1, N, H, D]."""
        output = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])
        decoding, start = [], 0
        for index, part in enumerate(self.now.parts):
            rows = slice(start, start + part.rows)
            if part.presence is None:
                decoding.append((index, start))
            else:
                own = query[:, :, rows], key[:, :, rows], value[:, :, rows]
                output[:, rows] = self._prefill(index, part, start, *own, scaling).transpose(1, 2)
            start += part.rows
        if decoding:
            requests, places = (torch.tensor(each, device=query.device) for each in zip(*decoding, strict=True))
            q, k, v = (x[0].index_select(1, places).transpose(0, 1).unsqueeze(2) for x in (query, key, value))
            output[0, places] = self._decode(requests, places, q, k, v, scaling).squeeze(2)
        return output

    def _prefill(
        self, index: int, part: Part, start: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """[1, H, T, D] of the T rows of a part, which begin at `start` of the pass."""
        layer, pages = self.layer, self.layer.pages
        rows = pages.rows(1, part.rows, query.device)
        stored = pages.packed(rows, layer.transform)
        turns = None if self.now.table is None else self.now.table[:, start : start + part.rows]
        center = self._center(turns)
        fresh = ops.for_cache(pages.spec, query.device).store_kv(_less(key, center), value, stored, 0, True)
        assert fresh is not None
        key, value = fresh[0] if center is None else (fresh[0] + center).to(key.dtype), fresh[1]
        end = part.prompt
        observation = self._observation(part)
        visible = torch.ones(1, part.rows, dtype=torch.bool, device=query.device)
        output = attend(query[:, :, :end], key[:, :, :end], value[:, :, :end], visible[:, :end], scaling, observation)
        if observation is not None:
            entering = self.now.entering[None, start : start + end]
            kept = self._choose(part, entering, observation)
            kept = torch.cat([kept, torch.arange(end, part.rows, device=kept.device)])
            rows, visible, turns = rows[:, kept], visible[:, kept], None if turns is None else turns[:, kept]
            if part.tail:
                key, value = key[:, :, kept], value[:, :, kept]
        if part.tail:
            tail = attend(query[:, :, end:], key, value, visible, scaling)
            output = torch.cat([output, tail], dim=2)
        places = torch.arange(rows.shape[1], device=rows.device)
        layer.memory.index_copy_(0, slots(self.now.blocks[index], layer.block, places), rows[0])
        if turns is not None:
            self.turns.store(part.request, layer.stage, 0, turns[0])
        return output

    def _center(self, table: Tensor | None) -> Tensor | None:
        """What stands in keys before RoPE, turned as the rows of a table [B, T, D]: [B, G, T, D]."""
        center = self.layer.turning
        return None if center is None or table is None else turned(center, table)

    def _observation(self, part: Part) -> Observation | None:
        """To be filled, if this layer cuts and there is something to cut."""
        presence = part.presence
        if self.recipe is None or presence is None or not presence.has_images:
            return None
        signals = frozenset(scorer(self.recipe.scorer).SIGNALS)
        return Observation(presence.text, presence.visual, presence.valid, signals)

    def _choose(self, part: Part, entering: Tensor, observation: Observation) -> Tensor:
        """Places of the prompt that are kept, by the tokens `entering` [1, T, D] the layer."""
        assert self.recipe is not None and part.presence is not None
        part.choice = rank(part.presence, entering, observation, None, self.recipe, self.layer.index, self.scheme)
        return part.choice.cut.slots[0]

    def _decode(
        self, requests: Tensor, starts: Tensor, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """[B, H, 1, D] of one token of each of B requests, at rows `starts` of the pass.

        query [B, H, 1, D], key and value [B, G, 1, D].
        """
        layer, pages = self.layer, self.layer.pages
        backend = ops.for_cache(pages.spec, query.device)
        rows = pages.rows(len(query), 1, query.device)
        parts = [self.now.parts[index] for index in requests.tolist()]
        held = [self._held(part) for part in parts]
        table = None if self.now.table is None else self.now.table[0, starts][:, None]
        backend.store_kv(_less(key, self._center(table)), value, pages.packed(rows, layer.transform), 0, False)
        tables = self.now.blocks.index_select(0, requests)
        counts, most = torch.tensor(held, device=query.device), max(held)
        layer.memory.index_copy_(0, slots(tables, layer.block, counts[:, None] - 1)[:, 0], rows[:, 0])
        stored = pages.packed(gather(layer.memory, tables, layer.block, most), layer.transform)
        valid = torch.arange(most, device=query.device) < counts[:, None]
        added = None
        if table is not None and layer.turning is not None:
            for part, count, row in zip(parts, held, table, strict=True):
                self.turns.store(part.request, layer.stage, count - 1, row)
            stored_turns = self.turns.of([part.request for part in parts], layer.stage, most)
            added = scaling * turned_logits(query, layer.turning, stored_turns)
        return backend.decode_attention(query, *stored, valid, scaling, most, added)

    def _held(self, part: Part) -> int:
        """Slots that a part fills once its rows are stored."""
        return part.seen + part.rows - dropped(self.layer.keep, part.sizes)


def _less(key: Tensor, center: Tensor | None) -> Tensor:
    return key if center is None else (key - center).to(key.dtype)


def attach(module: Any, attention: PackedAttention) -> None:
    """Let the attention `module` of a decoder layer attend by `attention`."""
    module.quota_packed = attention
    module.config._attn_implementation = NAME


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    attention: Any = module.quota_packed
    return attention(query, key, value, kwargs.get("scaling") or query.shape[-1] ** -0.5), None


AttentionInterface.register(NAME, _attention)
