"""What a layer's keys and queries look like where the KV cache sees them: behind RoPE, inside the attention call.

    mean  = E[k]       keys = E[(k - mean)^T (k - mean)]       queries = E[q^T q]        for each key head

Where keys have a centre before RoPE (quota/attention/turns.py), k is what is left of them without it.

A query counts for the key head that it reads. quota's attention function adds these up while layers are watched
(quota/attention/function.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from quota.attention.keys import KeyTransform
from quota.attention.state import attending
from quota.attention.turns import turn_table, turned
from quota.ranks import ALONE, Ranks


class KeyMoments:
    """Running sums over the tokens of all attention calls that were watched."""

    def __init__(self, turning: Tensor | None = None) -> None:
        """`turning` [G, D]: the centres before RoPE."""
        self.turning = turning
        self.tokens = 0
        self._table: Tensor | None = None
        self._sum: Tensor | None = None
        self._keys: Tensor | None = None
        self._queries: Tensor | None = None

    def turn(self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A hook in front of an attention module, to see how far it turns the keys of its call."""
        self._table = turn_table(*kwargs["position_embeddings"])

    @torch.no_grad()
    def add(self, query: Tensor, key: Tensor) -> None:
        """query [B, H, T, D] and key [B, G, T, D], G dividing H."""
        groups, width = key.shape[1], key.shape[3]
        if self.turning is not None:
            if self._table is None:
                raise RuntimeError("keys have a centre before RoPE; watch their attention module")
            key = key - turned(self.turning, self._table)
        k = key.float().transpose(0, 1).reshape(groups, -1, width)
        q = query.float().unflatten(1, (groups, -1)).transpose(0, 1).reshape(groups, -1, width)
        # In float64: the order of calls then changes no bit of the float32 that is left of the sums.
        sums = k.sum(dim=1).double(), (k.transpose(1, 2) @ k).double(), (q.transpose(1, 2) @ q).double()
        if self._sum is None or self._keys is None or self._queries is None:
            self._sum, self._keys, self._queries = sums
        else:
            self._sum, self._keys, self._queries = self._sum + sums[0], self._keys + sums[1], self._queries + sums[2]
        self.tokens += k.shape[1]

    def transform(self, ranks: Ranks = ALONE) -> KeyTransform | None:
        """The transform that these moments, of all ranks, ask for; None if nothing was watched."""
        if self._sum is None or self._keys is None or self._queries is None:
            return None
        tokens = float(ranks.total(torch.tensor(float(self.tokens), dtype=torch.float64)))
        total, keys, queries = (ranks.total(own) for own in (self._sum, self._keys, self._queries))
        mean = total / tokens
        centred = keys / tokens - mean.unsqueeze(2) * mean.unsqueeze(1)
        return KeyTransform.from_moments(mean.float(), centred.float(), (queries / tokens).float(), self.turning)


@contextmanager
def watch(config: PreTrainedConfig, moments: KeyMoments, attention: nn.Module | None = None) -> Iterator[KeyMoments]:
    """Add to `moments` those of the attention calls made inside the block by a layer with this (text) config.

    `attention` is its attention module, if keys have a centre before RoPE.
    """
    with ExitStack() as watching:
        watching.enter_context(attending(config, moments=moments))
        if attention is not None and moments.turning is not None:
            watching.callback(attention.register_forward_pre_hook(moments.turn, with_kwargs=True).remove)
        yield moments
