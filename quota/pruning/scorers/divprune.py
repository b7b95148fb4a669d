"""DivPrune: the subset whose closest two tokens are as far apart as can be.

    d(i, j) = 1 - cos(v_i, v_j)
    first   = argmax_i min_{j != i} d(i, j)
    next    = argmax_i min_{j chosen} d(i, j)                       until K are chosen

(Alvar et al., CVPR 2025, arXiv 2503.02175: the greedy solution of the max-min diversity problem.) A token's score is
how early it is chosen; K does not matter to the order. The paper prunes what the projector puts out.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import normalize

from quota.pruning.scorers.signals import Signals

SIGNALS: tuple[str, ...] = ("budget",)
WEIGHTS: Mapping[str, float] = {}


def score(signals: Signals, weights: Mapping[str, float], percentiles: tuple[float, float] = (1.0, 99.0)) -> Tensor:
    """Signals of B rows with V visual tokens -> score [B, V]: V for the first choice, then V - 1, and so on."""
    return farthest_first(distances(signals.hidden), signals.valid, signals.budget)


def distances(hidden: Tensor) -> Tensor:
    """1 - cosine of every two tokens: [B, V, D] -> [B, V, V] float32."""
    unit = normalize(hidden.float(), dim=-1)
    return 1 - unit @ unit.transpose(1, 2)


def farthest_first(distance: Tensor, valid: Tensor, budget: Tensor | None) -> Tensor:
    """The greedy order over `distance` [B, V, V]; steps beyond the largest `budget` [B] are not taken (score 0)."""
    rows, tokens = torch.arange(len(valid), device=valid.device), valid.shape[1]
    score = torch.zeros(valid.shape, dtype=torch.float32, device=valid.device)
    steps = int((valid.sum(dim=1) if budget is None else budget).max())
    own = torch.eye(tokens, dtype=torch.bool, device=valid.device)
    nearest = distance.masked_fill(~valid[:, None] | own, torch.inf).amin(dim=2)
    free = valid.clone()
    for step in range(steps):
        best = nearest.masked_fill(~free, -torch.inf).argmax(dim=1)
        # A row of fewer tokens than another's budget has none left.
        score[rows, best] = torch.where(free[rows, best], float(tokens - step), score[rows, best])
        free[rows, best] = False
        chosen = distance[rows, best]
        nearest = chosen if step == 0 else nearest.minimum(chosen)
    return score.masked_fill(~valid, 0)
