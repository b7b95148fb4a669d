"""Centres of keys that stand before RoPE: they turn with the token, and the cache takes them out and adds them again.

Where the key projection has a bias, most of a key is the same for all tokens before RoPE and for none behind it:

    k_t = R_t (W x_t + b)        c_0 = b        the cache stores k_t - R_t c_0 = R_t W x_t

R_t turns the channels j and j + h (h = D / 2) by one angle, and the whole table of turns is shared by all layers:

    (R_t c)_j = c_j cos_tj - c_(j+h) sin_tj          (R_t c)_(j+h) = c_(j+h) cos_tj + c_j sin_tj

Keys that are read as numbers get R_t c_0 again. A query that reads the packed integers gets it as a term of its logits,
which is a product of D numbers of the query with a row of the table:

    q . R_t c = sum_j  cos_tj (q_j c_j + q_(j+h) c_(j+h)) + sin_tj (q_(j+h) c_j - q_j c_(j+h))

Angles are those that the decoder's layers really get, so positions may be of any kind (M-RoPE has three a token).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def turn_table(cos: Tensor, sin: Tensor) -> Tensor:
    """What a decoder's rotary embedding gives, cos and sin [B, T, D] with equal halves -> [B, T, D] float32."""
    half = cos.shape[-1] // 2
    return torch.cat([cos[..., :half], sin[..., :half]], dim=-1).float()


def turned(center: Tensor, table: Tensor) -> Tensor:
    """R_t c of centres [G, D] for every token of a table [B, T, D]: [B, G, T, D] float32."""
    cos, sin = table.unsqueeze(1).chunk(2, dim=-1)
    low, high = center.float().unsqueeze(1).chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


def turned_logits(query: Tensor, center: Tensor, table: Tensor) -> Tensor:
    """q . R_t c of one query a head [B, H, 1, D], c [G, D] of the key head that it reads: [B, H, T] float32."""
    low, high = query.float().squeeze(2).chunk(2, dim=-1)
    shared = query.shape[1] // center.shape[0]
    center_low, center_high = center.float().repeat_interleave(shared, dim=0).chunk(2, dim=-1)
    with_cos, with_sin = low * center_low + high * center_high, high * center_low - low * center_high
    with torch.autocast(query.device.type, enabled=False):
        return torch.cat([with_cos, with_sin], dim=-1) @ table.mT


@dataclass(frozen=True)
class Turns:
    """The turns of all tokens that a cache has seen, by their position in the sequence."""

    table: Tensor
    """[B, N, D] float32; memory, which may have room for later tokens."""
    layers: int
    """Cache layers that share it."""

    def nbytes(self, tokens: int) -> int:
        """Of so many tokens, the share of one layer."""
        return self.table[:, :tokens].nbytes // self.layers
