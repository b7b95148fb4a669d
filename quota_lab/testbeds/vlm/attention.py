"""Attention with a mask, written out: softmax(q k^T / sqrt(d) + mask) v.

On a CPU in bfloat16, backward included, this is faster than torch's fused operator with a mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

NAME = "quota_lab_written_out"


def written_out(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """query [B, H, L, D], key and value [B, K, L, D], mask [B, 1, L, L] that is added -> [B, L, H, D].

    The queries of the H / K heads that share a key stand below one another: one product for all of them.
    """
    batch, heads, length, width = query.shape
    shared = key.shape[1]
    rows = (query * scaling).reshape(batch * shared, heads // shared * length, width)
    scores = torch.bmm(rows, key.reshape(batch * shared, length, width).transpose(1, 2))
    scores = scores.view(batch, heads, length, length) + attention_mask
    weights = scores.softmax(-1).view(batch * shared, heads // shared * length, length)
    found = torch.bmm(weights, value.reshape(batch * shared, length, width))
    return found.view(batch, heads, length, width).transpose(1, 2), None


AttentionInterface.register(NAME, written_out)
