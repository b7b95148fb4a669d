"""How one decoder layer stores tokens: rows of bytes, in the blocks that vLLM hands out.

    row     G heads, one behind the other
    head    key | value | scale and zero of the key | scale and zero of the value        bits of the scheme; float16

So a token is one row: written to its slot by one copy, and the rows of a request, put behind one another, are what the
operators of the cache read as they lie (`quota.ops`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quota.ops.head_transform import HeadTransform
from quota.ops.interface import CacheSpec, PackedTensor
from quota.ops.kv_integer import packed_width

_NUMBER = 2
"""Bytes of a scale, and of a zero."""


@dataclass(frozen=True)
class Pages:
    """The layout of one layer."""

    spec: CacheSpec
    heads: int
    """G."""

    @property
    def bytes_of_head(self) -> int:
        """C, of one token."""
        return 2 * packed_width(self.spec.width, self.spec.bits) + 4 * _NUMBER

    @property
    def bytes_of_token(self) -> int:
        """Of one row."""
        return self.heads * self.bytes_of_head

    def rows(self, batch: int, tokens: int, device: torch.device) -> Tensor:
        """New rows uint8 [B, T, G * C], of anything."""
        return torch.empty(batch, tokens, self.bytes_of_token, dtype=torch.uint8, device=device)

    def packed(self, rows: Tensor, transform: HeadTransform | None) -> tuple[PackedTensor, PackedTensor]:
        """Keys, which are transformed and rotated, and values [B, G, T, D] in rows uint8 [B, T, G * C], in place."""
        bits, width = self.spec.bits, self.spec.width
        numbers = packed_width(width, bits)
        heads = rows.unflatten(2, (self.heads, self.bytes_of_head)).transpose(1, 2)
        key, value, *rest = heads.split([numbers, numbers, *[_NUMBER] * 4], dim=3)
        key_scale, key_zero, value_scale, value_zero = (part.view(torch.float16) for part in rest)
        return (
            PackedTensor(key, key_scale, key_zero, bits, width, self.spec.hadamard, transform),
            PackedTensor(value, value_scale, value_zero, bits, width, 0),
        )


def slots(tables: Tensor, block: int, places: Tensor) -> Tensor:
    """Rows of the memory that hold the tokens at `places` [..., T] of requests with blocks `tables` [..., blocks]."""
    return tables.gather(-1, places // block).long() * block + places % block


def gather(memory: Tensor, tables: Tensor, block: int, tokens: int) -> Tensor:
    """The first `tokens` of B requests with blocks `tables` [B, blocks]: memory [slots, G * C] -> [B, T, G * C].

    T is a whole number of blocks; behind a request's last token stands what ended requests have left there: numbers.
    """
    blocks = memory.view(-1, block * memory.shape[1])
    wanted = tables[:, : -(-tokens // block)]
    return blocks.index_select(0, wanted.flatten()).view(len(tables), -1, memory.shape[1])
