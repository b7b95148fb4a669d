"""The most attention that each token receives from any text token in any head.

    peak_i = max_h max_{j in text} A_h[j, i]

One head of one word may be the only one that looks at what the question is about; an average over heads and words
drowns it. A maximum is no sum over queries, so the fused attention cannot add it up: the rows of the text, which are
few, are worked out once more from the same queries and keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Attention weights held at once, in numbers; 2^24 of them are 64 MiB.
_CHUNK = 1 << 24


def peak(query: Tensor, key: Tensor, text: Tensor, visible: Tensor, scaling: float) -> Tensor:
    """Queries [B, H, T, D] and keys [B, G, S, D] of causal attention over the last T of S tokens -> [B, S] float32.

    `text` [B, T] bool: queries that are text; `visible` [B, S] bool: keys that may be attended to, or [B, T, S], those
    of each query; `scaling` is that of the logits. Zero for a key that no text token sees.
    """
    batch, heads, queries, width = query.shape
    groups, length = key.shape[1], key.shape[2]
    most = int(text.sum(dim=1).max())
    # The text rows of every sample, in front; behind them rows that do not count.
    order = text.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    counts = text.gather(1, order)
    rows = query.gather(2, order[:, None, :, None].expand(-1, heads, -1, width))
    rows = rows.reshape(batch, groups, heads // groups, most, width).float()
    transposed = key.float().transpose(-1, -2).unsqueeze(2)
    places = torch.arange(length, device=key.device)
    best = torch.zeros(batch, length, device=key.device)
    step = max(1, _CHUNK // max(1, batch * heads * length))
    for start in range(0, most, step):
        chunk = slice(start, start + step)
        logits = rows[..., chunk, :] @ transposed * scaling
        if visible.ndim == 3:
            sees = visible.gather(1, order[:, chunk, None].expand(-1, -1, length))
        else:
            sees = visible[:, None] & (places <= order[:, chunk, None] + length - queries)
        hidden = ~(sees & counts[:, chunk, None])[:, None, None]
        weights = logits.masked_fill_(hidden, torch.finfo(torch.float32).min).softmax(dim=-1).masked_fill_(hidden, 0)
        best = best.maximum(weights.amax(dim=(1, 2, 3)))
    return best


def peak_naive(query: Tensor, key: Tensor, text: Tensor, visible: Tensor, scaling: float) -> Tensor:
    """`peak`, one text token and head at a time: what it must equal."""
    batch, heads, queries, _ = query.shape
    length, shared = key.shape[2], heads // key.shape[1]
    best = torch.zeros(batch, length, device=key.device)
    for sample, head, place in torch.cartesian_prod(*map(torch.arange, (batch, heads, queries))).tolist():
        sees = torch.arange(length, device=key.device) <= place + length - queries
        sees = visible[sample, place] if visible.ndim == 3 else sees & visible[sample]
        if text[sample, place] and sees.any():
            logits = key[sample, head // shared].float() @ query[sample, head, place].float() * scaling
            best[sample] = best[sample].maximum(logits.masked_fill(~sees, -torch.inf).softmax(dim=0))
    return best
