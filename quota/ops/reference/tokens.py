"""The jobs of visual tokens in plain torch: what every backend's must equal.

    activation_error  ||Q(v) - v||_2, how far the deployed activation quantiser moves a token: its risk
    information       QUOTA's own score: greedily the token of largest variance, given those chosen before it,

                      var_i  = |v_i|^2                                   at first
                      c_i    = (v_b . v_i - sum_r c_r,b c_r,i) / sqrt(var_b + s2)      for the newest choice b
                      var_i  = var_i - c_i^2                             behind each choice
                      s2     = noise * mean |v|^2

quota/pruning/scorers/information.py says what it is for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quota.ops.activations import dequantize_activation, quantize_activation
from quota.ops.hadamard import block_hadamard
from quota.ops.interface import InputSpec

SMALLEST = 1e-30
"""Under the root: where nothing is left, nothing is divided by."""


def activation_error(x: Tensor, inputs: InputSpec) -> Tensor:
    """||Q(x H) - x H||_2 of each row of x [M, K] -> [M] float32; zeros for 16 bits.

    H turns vectors without stretching them, so this is the error in the basis of x too.
    """
    if inputs.bits == 16:
        return torch.zeros(len(x), dtype=torch.float32, device=x.device)
    rotated = block_hadamard(x.float(), inputs.hadamard)
    seen = dequantize_activation(*quantize_activation(rotated, inputs.bits, inputs.group))
    return torch.linalg.vector_norm(seen.sub_(rotated), dim=-1)


def information(hidden: Tensor, valid: Tensor, counts: Tensor, noise: float) -> Tensor:
    """Score of visual tokens [B, V, D], float32 [B, V], 0 at padding.

    valid bool [B, V]; counts int64 [B]: how many of a row are chosen. A chosen token's score is its variance when it
    was, any other's what is left of it, so that the highest scores are the choice. What stands at padding is never
    read. Where variances have no finite sum, all scores of an image are NaN.
    """
    batch, tokens = valid.shape
    products, left, chosen, spread = opening(hidden, valid, counts, noise)
    score, free = torch.zeros(valid.shape, dtype=torch.float32, device=valid.device), valid
    factor = left.new_zeros(batch, int(chosen.max()) if batch else 0, tokens)
    rows, place = torch.arange(batch, device=valid.device), torch.arange(tokens, device=valid.device)
    for step in range(factor.shape[1]):
        best = left.masked_fill(~free, -torch.inf).argmax(dim=1)
        on = step < chosen
        newest = on[:, None] & (place == best[:, None])
        score, free = torch.where(newest, left, score), free & ~newest
        known = (factor[rows, :step, best][:, :, None] * factor[:, :step]).sum(dim=1)
        root = (left[rows, best] + spread).clamp(min=SMALLEST).sqrt()
        new = ((products[rows, best] - known) / root[:, None]).masked_fill(~on[:, None], 0)
        factor[:, step] = new
        left = left - new.square()
    return torch.where(free, left, score).masked_fill_(~valid, 0)


def opening(hidden: Tensor, valid: Tensor, counts: Tensor, noise: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is known before the first choice: G [B, V, V], variances [B, V], how many are chosen [B], and s2 [B]."""
    hidden = hidden.float().masked_fill(~valid[..., None], 0)
    products = hidden @ hidden.transpose(1, 2)
    left = products.diagonal(dim1=1, dim2=2).clone()
    there, total = valid.sum(dim=1), left.sum(dim=1)
    left.masked_fill_(~total.isfinite()[:, None], torch.nan)
    return products, left, counts.minimum(there), noise * total / there.clamp(min=1)


def information_naive(hidden: Tensor, valid: Tensor, counts: Tensor, noise: float) -> Tensor:
    """`information` by its definition, a token's variance behind each choice solved anew, in float64."""
    score = torch.zeros(valid.shape, dtype=torch.float32)
    for row, (own, there, count) in enumerate(zip(hidden.double(), valid, counts.tolist(), strict=True)):
        places = there.nonzero().flatten().tolist()
        products = own[places] @ own[places].T
        spread = noise * products.diagonal().mean()
        chosen: list[int] = []
        left = products.diagonal()
        for _ in range(min(count, len(places))):
            best = max(set(range(len(places))) - set(chosen), key=lambda one: (float(left[one]), -one))
            score[row, places[best]] = left[best]
            chosen.append(best)
            seen = products[chosen][:, chosen] + spread * torch.eye(len(chosen), dtype=torch.float64)
            shared = products[chosen]
            left = products.diagonal() - (shared * torch.linalg.solve(seen, shared)).sum(dim=0)
        for one in set(range(len(places))) - set(chosen):
            score[row, places[one]] = left[one]
    return score
