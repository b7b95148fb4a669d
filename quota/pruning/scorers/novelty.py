"""What the question looks at and no better token already shows.

    w_i     = 1/H sum_h sum_{j in text} A_h[j, i]               attention from the text (`inter`); 1 before the decoder
    nov_i   = min_{j ahead of i} (1 - cos(v_i, v_j))            how new v_i is beside all tokens that are ahead of it
    score_i = sqrt(w_i) nov_i

j is ahead of i if w_j > w_i, or w_j = w_i and j < i; the first of all has nov = 2, the largest there is. Neither factor
does alone. Attention keeps many copies of what it likes (background patches are near-duplicates), and distances alone
keep what nobody asked about. Of a group of duplicates only the one with most attention has a high score, so a product
keeps one of each thing, the important first. Unlike greedy max-min or determinants it needs no loop over tokens: one
matrix product and one minimum. QUOTA's own score (quota/pruning/scorers/peaks.py) goes one step further.

The magnitude of a token and its quantisation risk are left out on purpose: docs/study/README.md shows what they cost.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from quota.ops.choice import places
from quota.ops.reference.tokens import cosines, lengths, novelty, products
from quota.pruning.scorers.signals import Signals

SIGNALS: tuple[str, ...] = ("inter",)
WEIGHTS: Mapping[str, float] = {}


def score(signals: Signals, weights: Mapping[str, float], percentiles: tuple[float, float] = (1.0, 99.0)) -> Tensor:
    """Signals of B rows with V visual tokens -> score [B, V] float32, 0 at padding."""
    weight, hidden = text_attention(signals), signals.hidden.float()
    length, place = lengths(hidden), places(weight, signals.valid)
    new = [novelty(cosines(part, length, rows), place, rows) for rows, part in products(hidden)]
    return (weight.sqrt() * torch.cat(new, dim=1)).masked_fill(~signals.valid, 0)


def text_attention(signals: Signals) -> Tensor:
    """w of every token, [B, V]."""
    return torch.ones(signals.valid.shape, device=signals.hidden.device) if signals.inter is None else signals.inter
