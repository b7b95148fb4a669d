"""The score `peaks` of visual tokens from their products, in plain torch: what every backend's must equal.

    c_ij    = v_i . v_j / (|v_i| |v_j|)
    mass_i  = sum_j w_j max(0, c_ij)^16
    nov_i   = 1 - max of c_ij over the j ahead of i                 2 for the first of all
    score_i = sqrt(mass_i) nov_i

j is ahead of i if w_j > w_i, or w_j = w_i and j < i. quota/scorers/peaks.py says what it is for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quota.selection import places

_LARGEST = 2.0
_SQUARINGS = 4


def peaks(products: Tensor, lengths: Tensor, weight: Tensor, valid: Tensor, first: int) -> Tensor:
    """Score of tokens `first` .. first + R - 1 of each row of V, float32 [B, R], 0 at padding.

    products [B, R, V] float32 of those tokens with all, used up; lengths [B, V] of all, none zero; weight [B, V] float;
    valid [B, V] bool. What stands at padding is never read.
    """
    rows = slice(first, first + products.shape[1])
    similarity = cosines(products, lengths, rows)
    mass = attention_mass(similarity, weight, valid)
    new = novelty(similarity, places(weight, valid), rows)
    return (mass.sqrt() * new).masked_fill(~valid[:, rows], 0)


def cosines(products: Tensor, lengths: Tensor, rows: slice) -> Tensor:
    """Products of the tokens in `rows` with all [B, R, V] become cosines, in place."""
    return products.div_(lengths[:, rows, None]).div_(lengths[:, None])


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


def novelty(similarity: Tensor, place: Tensor, rows: slice) -> Tensor:
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
