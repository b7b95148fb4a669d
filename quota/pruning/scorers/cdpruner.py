"""CDPruner: a diverse subset, given the question.

    r_i     = relevance: mean cosine with the text tokens, rescaled to [0, 1] within the image
    L_ij    = r_i cos(v_i, v_j) r_j
    choose  greedily the token that raises log det L of the chosen ones most, until K are chosen

(Zhang et al., NeurIPS 2025, arXiv 2506.10967: MAP of a determinantal point process conditioned on the instruction, by
the fast greedy algorithm of Chen et al., arXiv 1709.05135.) A token's score is how early it is chosen. The paper prunes
what the projector puts out and takes the relevance from CLIP's text tower; a model of this package has none, so the
text's embeddings take its place, as the paper does for such models.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import normalize

from quota.errors import QuotaError
from quota.pruning.scorers.signals import Signals

SIGNALS: tuple[str, ...] = ("text", "budget")
WEIGHTS: Mapping[str, float] = {}

# A kernel of V tokens in D < V channels has no determinant beyond D of them: this keeps the order defined.
_RIDGE = 1e-6


def score(signals: Signals, weights: Mapping[str, float], percentiles: tuple[float, float] = (1.0, 99.0)) -> Tensor:
    """Signals of B rows with V visual tokens -> score [B, V]: V for the first choice, then V - 1, and so on."""
    if signals.text is None or signals.text_valid is None:
        raise QuotaError("CDPruner needs the question's embeddings")
    unit = normalize(signals.hidden.float(), dim=-1)
    words = normalize(signals.text.float(), dim=-1).masked_fill(~signals.text_valid[..., None], 0)
    relevance = (unit @ words.sum(dim=1)[..., None])[..., 0] / signals.text_valid.sum(dim=1, keepdim=True).clamp(min=1)
    low = relevance.masked_fill(~signals.valid, torch.inf).amin(dim=1, keepdim=True)
    high = relevance.masked_fill(~signals.valid, -torch.inf).amax(dim=1, keepdim=True)
    weight = (relevance - low) / (high - low).clamp(min=1e-6) + 1e-6
    kernel = weight[:, :, None] * (unit @ unit.transpose(1, 2)) * weight[:, None, :]
    return greedy_determinant(kernel, signals.valid, signals.budget)


def greedy_determinant(kernel: Tensor, valid: Tensor, budget: Tensor | None) -> Tensor:
    """Greedy order of the largest determinant over `kernel` [B, V, V]; nothing beyond the largest `budget` [B].

    With C the Cholesky factor of the chosen part, every token's gain d_i^2 = L_ii - |c_i|^2 is updated by one column:
    e_i = (L_ji - <c_j, c_i>) / d_j for the newest choice j.
    """
    batch, tokens = valid.shape
    rows = torch.arange(batch, device=valid.device)
    steps = int((valid.sum(dim=1) if budget is None else budget).max())
    factor = torch.zeros(batch, tokens, steps, dtype=torch.float32, device=valid.device)
    gain = kernel.diagonal(dim1=1, dim2=2) + _RIDGE
    score, free = torch.zeros(valid.shape, dtype=torch.float32, device=valid.device), valid.clone()
    for step in range(steps):
        best = gain.masked_fill(~free, -torch.inf).argmax(dim=1)
        # A row of fewer tokens than another's budget has none left.
        score[rows, best] = torch.where(free[rows, best], float(tokens - step), score[rows, best])
        free[rows, best] = False
        along = (factor * factor[rows, best][:, None]).sum(dim=-1)
        column = (kernel[rows, best] - along) / gain[rows, best].clamp(min=_RIDGE).sqrt()[:, None]
        factor[:, :, step] = column
        gain = gain - column.square()
    return score.masked_fill(~valid, 0)
