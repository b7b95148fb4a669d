"""What a layer's keys and queries look like where the KV cache sees them: behind RoPE, inside the attention call.

    mean  = E[k]       keys = E[(k - mean)^T (k - mean)]       queries = E[q^T q]        for each key head

A query counts for the key head that it reads. quota's attention function adds these up while layers are watched
(quota/attention/function.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from quota.attention.keys import KeyTransform
from quota.attention.state import attending


class KeyMoments:
    """Running sums over the tokens of all attention calls that were watched."""

    def __init__(self) -> None:
        self.tokens = 0
        self._sum: Tensor | None = None
        self._keys: Tensor | None = None
        self._queries: Tensor | None = None

    @torch.no_grad()
    def add(self, query: Tensor, key: Tensor) -> None:
        """query [B, H, T, D] and key [B, G, T, D], G dividing H."""
        groups, width = key.shape[1], key.shape[3]
        k = key.float().transpose(0, 1).reshape(groups, -1, width)
        q = query.float().unflatten(1, (groups, -1)).transpose(0, 1).reshape(groups, -1, width)
        # In float64: the order of calls then changes no bit of the float32 that is left of the sums.
        sums = k.sum(dim=1).double(), (k.transpose(1, 2) @ k).double(), (q.transpose(1, 2) @ q).double()
        if self._sum is None or self._keys is None or self._queries is None:
            self._sum, self._keys, self._queries = sums
        else:
            self._sum, self._keys, self._queries = self._sum + sums[0], self._keys + sums[1], self._queries + sums[2]
        self.tokens += k.shape[1]

    def transform(self) -> KeyTransform | None:
        """The transform that these moments ask for; None if nothing was watched."""
        if self._sum is None or self._keys is None or self._queries is None:
            return None
        mean = self._sum / self.tokens
        centred = self._keys / self.tokens - mean.unsqueeze(2) * mean.unsqueeze(1)
        return KeyTransform.from_moments(mean.float(), centred.float(), (self._queries / self.tokens).float())


@contextmanager
def watch(config: PreTrainedConfig, moments: KeyMoments) -> Iterator[KeyMoments]:
    """Add to `moments` those of the attention calls made inside the block by a layer with this (text) config."""
    with attending(config, moments=moments):
        yield moments
