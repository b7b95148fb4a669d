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

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from quota.ops.reference_peaks import cosines, novelty
from quota.scorers.signals import Signals
from quota.selection import places

SIGNALS: tuple[str, ...] = ("inter",)
WEIGHTS: Mapping[str, float] = {}

_SMALLEST = 1e-12
_ENTRIES = 2**24
"""Products at a time: the square of 4,096 tokens."""


def score(signals: Signals, weights: Mapping[str, float], percentiles: tuple[float, float] = (1.0, 99.0)) -> Tensor:
    """Signals of B rows with V visual tokens -> score [B, V] float32, 0 at padding."""
    weight, hidden = text_attention(signals), signals.hidden.float()
    length, place = lengths(hidden), places(weight, signals.valid)
    new = [novelty(cosines(part, length, rows), place, rows) for rows, part in products(hidden)]
    return (weight.sqrt() * torch.cat(new, dim=1)).masked_fill(~signals.valid, 0)


def text_attention(signals: Signals) -> Tensor:
    """w of every token, [B, V]."""
    return torch.ones(signals.valid.shape, device=signals.hidden.device) if signals.inter is None else signals.inter


def lengths(hidden: Tensor) -> Tensor:
    """|v_i| of tokens [B, V, D], none zero: [B, V]."""
    return torch.linalg.vector_norm(hidden, dim=-1).clamp(min=_SMALLEST)


def products(hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """v_i . v_j of tokens [B, V, D], some rows of them at a time: which they are, and [B, R, V].

    All at once, unless a picture has very many. Lengths are divided by later: V numbers for each token, not all of its
    channels.
    """
    batch, tokens, _ = hidden.shape
    step = max(1, _ENTRIES // (batch * tokens))
    for start in range(0, tokens, step):
        rows = slice(start, min(start + step, tokens))
        yield rows, hidden[:, rows] @ hidden.transpose(1, 2)
