"""The jobs of visual tokens in plain torch: what every backend's must equal.

    activation_error  ||Q(v) - v||_2, how far the deployed activation quantiser moves a token: its risk
    peaks             QUOTA's own score,

                      c_ij    = v_i . v_j / (|v_i| |v_j|)
                      mass_i  = sum_j w_j max(0, c_ij)^16
                      nov_i   = 1 - max of c_ij over the j ahead of i                 2 for the first of all
                      score_i = sqrt(mass_i) nov_i

j is ahead of i if w_j > w_i, or w_j = w_i and j < i. quota/pruning/scorers/peaks.py says what it is for.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from quota.ops.activations import dequantize_activation, quantize_activation
from quota.ops.choice import places
from quota.ops.hadamard import block_hadamard
from quota.ops.interface import InputSpec

_LARGEST = 2.0
_SMALLEST = 1e-12
_SQUARINGS = 4
_ENTRIES = 2**24
"""Products at a time: the square of 4,096 tokens."""


def activation_error(x: Tensor, inputs: InputSpec) -> Tensor:
    """||Q(x H) - x H||_2 of each row of x [M, K] -> [M] float32; zeros for 16 bits.

    H turns vectors without stretching them, so this is the error in the basis of x too.
    """
    if inputs.bits == 16:
        return torch.zeros(len(x), device=x.device)
    rotated = block_hadamard(x.float(), inputs.hadamard)
    seen = dequantize_activation(*quantize_activation(rotated, inputs.bits, inputs.group))
    return torch.linalg.vector_norm(seen.sub_(rotated), dim=-1)


def peaks(hidden: Tensor, weight: Tensor, valid: Tensor) -> Tensor:
    """Score of visual tokens [B, V, D], float32 [B, V], 0 at padding.

    weight [B, V] float; valid [B, V] bool. What stands at padding is never read.
    """
    if not valid.numel():
        return torch.zeros(valid.shape, device=valid.device)
    hidden = hidden.float()
    length, place = lengths(hidden), places(weight, valid)
    scores = []
    for rows, part in products(hidden):
        similarity = cosines(part, length, rows)
        mass = attention_mass(similarity, weight, valid)
        scores.append(mass.sqrt() * novelty(similarity, place, rows))
    return torch.cat(scores, dim=1).masked_fill(~valid, 0)


def lengths(hidden: Tensor) -> Tensor:
    """|v_i| of tokens [B, V, D], none zero: [B, V]."""
    return torch.linalg.vector_norm(hidden, dim=-1).clamp(min=_SMALLEST)


def products(hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """v_i . v_j of tokens [B, V, D], some rows of them at a time: which they are, and [B, R, V].

    All at once, unless a picture has very many. Lengths are divided by later: V numbers for each token, not all of its
    channels.
    """
    batch, tokens, _ = hidden.shape
    step = max(1, _ENTRIES // max(1, batch * tokens))
    for start in range(0, max(tokens, 1), step):
        rows = slice(start, min(start + step, tokens))
        yield rows, hidden[:, rows] @ hidden.transpose(1, 2)


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
