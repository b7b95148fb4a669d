"""What the question looks at and no better token already shows.

    w_i     = 1/H sum_h sum_{j in text} A_h[j, i]               attention from the text (`inter`); 1 before the decoder
    nov_i   = min_{j ahead of i} (1 - cos(v_i, v_j))            how new v_i is beside all tokens that are ahead of it
    score_i = sqrt(w_i) nov_i

j is ahead of i if w_j > w_i, or w_j = w_i and j < i; the first of all has nov = 2, the largest there is. Neither factor
does alone. Attention keeps many copies of what it likes (background patches are near-duplicates), and distances alone
keep what nobody asked about. Of a group of duplicates only the one with most attention has a high score, so a product
keeps one of each thing, the important first. Unlike greedy max-min or determinants it needs no loop over tokens: one
matrix product and one minimum. QUOTA's own score (quota/scorers/peaks.py) goes one step further.

The magnitude of a token and its quantisation risk are left out on purpose: docs/study/README.md shows what they cost.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from quota.scorers.signals import Signals
from quota.selection import places

SIGNALS: tuple[str, ...] = ("inter",)
WEIGHTS: Mapping[str, float] = {}

_LARGEST = 2.0
_SMALLEST = 1e-12
_ALL = slice(None)
_ENTRIES = 2**24
"""Cosines at a time: the square of 4,096 tokens."""


def score(signals: Signals, weights: Mapping[str, float], percentiles: tuple[float, float] = (1.0, 99.0)) -> Tensor:
    """Signals of B rows with V visual tokens -> score [B, V] float32, 0 at padding."""
    weight = text_attention(signals)
    place = places(weight, signals.valid)
    new = [novelty(cosines(signals.hidden, rows), place, rows) for rows in blocks(place)]
    return (weight.sqrt() * torch.cat(new, dim=1)).masked_fill(~signals.valid, 0)


def text_attention(signals: Signals) -> Tensor:
    """w of every token, [B, V]."""
    return torch.ones(signals.valid.shape, device=signals.hidden.device) if signals.inter is None else signals.inter


def blocks(place: Tensor) -> list[slice]:
    """Rows of the cosines of tokens [B, V] that are worked on at a time: all, unless a picture has very many."""
    batch, tokens = place.shape
    step = max(1, _ENTRIES // (batch * tokens))
    return [slice(start, start + step) for start in range(0, tokens, step)]


def cosines(hidden: Tensor, rows: slice = _ALL) -> Tensor:
    """Cosine of every token in `rows` to every token, [B, V, D] -> [B, R, V] float32."""
    hidden = hidden.float()
    length = torch.linalg.vector_norm(hidden, dim=-1).clamp(min=_SMALLEST)
    # Products first, lengths after: V numbers to divide for each token, not all its channels.
    return (hidden[:, rows] @ hidden.transpose(1, 2)).div_(length[:, rows, None]).div_(length[:, None])


def novelty(similarity: Tensor, place: Tensor, rows: slice = _ALL) -> Tensor:
    """1 - the largest cosine of the tokens in `rows` to one ahead by `place` [B, V]; [B, R] in [0, 2].

    `similarity` [B, R, V] is used up.
    """
    similarity.masked_fill_(place[:, None] >= place[:, rows, None], -1)
    return (1 - similarity.amax(dim=2)).clamp(0, _LARGEST)


def novelty_naive(hidden: Tensor, weight: Tensor, valid: Tensor) -> Tensor:
    """`novelty` of tokens [B, V, D], one at a time: what it must equal at valid ones."""
    result = torch.full(valid.shape, _LARGEST)
    for row, i in valid.nonzero().tolist():
        for j in valid[row].nonzero().flatten().tolist():
            ahead = (-float(weight[row, j]), j) < (-float(weight[row, i]), i)
            if ahead:
                cosine = torch.cosine_similarity(hidden[row, i].float(), hidden[row, j].float(), dim=0)
                result[row, i] = result[row, i].minimum(1 - cosine)
    return result
