"""QUOTA's own score: how much attention goes to what a token stands for, times how new it is.

    w_i     = 1/H sum_h sum_{j in text} A_h[j, i]               attention from the text (`inter`); 1 before the decoder
    mass_i  = sum_j w_j max(0, cos(v_i, v_j))^16                attention of all that looks like v_i, itself included
    nov_i   = min_{j ahead of i} (1 - cos(v_i, v_j))            how new v_i is beside all tokens that are ahead of it
    score_i = sqrt(mass_i) nov_i

j is ahead of i if w_j > w_i, or w_j = w_i and j < i. Novelty alone (quota/scorers/novelty.py) weighs a token by its own
attention. But patches of one surface share theirs: a background that the question asks about gives little to each of
its many patches, and odd tokens that stand for nothing but themselves push out the few that speak for all of it. The
mass is what the group has together: before the decoder its size, so surfaces come before specks. Novelty then takes
one patch of each group first. These are the peaks of Rodriguez and Laio's clustering (Science 344, 2014), with
attention for density. The order stays that of the single token's attention: by mass it is worse (docs/study/README.md).

No loop over tokens: one matrix product, four squarings, one product with a vector, one minimum. A cosine of 0.96 counts
half.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from quota.scorers.novelty import blocks, cosines, novelty, text_attention
from quota.scorers.signals import Signals
from quota.selection import places

SIGNALS: tuple[str, ...] = ("inter",)
WEIGHTS: Mapping[str, float] = {}

_SQUARINGS = 4


def score(signals: Signals, weights: Mapping[str, float], percentiles: tuple[float, float] = (1.0, 99.0)) -> Tensor:
    """Signals of B rows with V visual tokens -> score [B, V] float32, 0 at padding."""
    weight = text_attention(signals)
    place = places(weight, signals.valid)
    scores = []
    for rows in blocks(place):
        similarity = cosines(signals.hidden, rows)
        mass = attention_mass(similarity, weight, signals.valid)
        scores.append(mass.sqrt() * novelty(similarity, place, rows))
    return torch.cat(scores, dim=1).masked_fill(~signals.valid, 0)


def attention_mass(similarity: Tensor, weight: Tensor, valid: Tensor) -> Tensor:
    """Cosines of R tokens to all [B, R, V] and w [B, V] -> mass [B, R]."""
    alike = similarity.clamp(min=0).masked_fill_(~valid[:, None], 0)
    for _ in range(_SQUARINGS):
        alike.mul_(alike)
    return (alike @ weight.masked_fill(~valid, 0)[:, :, None])[:, :, 0]


def attention_mass_naive(hidden: Tensor, weight: Tensor, valid: Tensor) -> Tensor:
    """`attention_mass` of tokens [B, V, D], one pair at a time: what it must equal at valid ones."""
    result = torch.zeros(valid.shape)
    for row, i in valid.nonzero().tolist():
        for j in valid[row].nonzero().flatten().tolist():
            cosine = torch.cosine_similarity(hidden[row, i].float(), hidden[row, j].float(), dim=0)
            result[row, i] += weight[row, j] * cosine.clamp(min=0) ** 16
    return result
