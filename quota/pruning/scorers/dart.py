"""DART: a few pivots, and the tokens that repeat them least.

    pivots   the 8 tokens whose keys have the largest L1 norm
    score_i  = -max_{p in pivots} cos(v_i, v_p)                     pivots themselves are kept first

(Wen et al., EMNLP 2025, arXiv 2502.11494.) The paper cuts once, after the second decoder layer. It takes for every
pivot in turn the same number of tokens least similar to it; here a token counts by the pivot it repeats most, so that
the order does not depend on how pivots are numbered.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import normalize

from quota.errors import QuotaError
from quota.ops.choice import top_k
from quota.pruning.scorers.signals import Signals

SIGNALS: tuple[str, ...] = ("keys",)
WEIGHTS: Mapping[str, float] = {}

PIVOTS = 8


def score(signals: Signals, weights: Mapping[str, float], percentiles: tuple[float, float] = (1.0, 99.0)) -> Tensor:
    """Signals of B rows with V visual tokens -> score [B, V] in [-1, 1], 2 for pivots."""
    if signals.keys is None:
        raise QuotaError("DART needs keys, which no layer has made yet; prune at layer 0 or later")
    size = signals.keys.float().abs().sum(dim=-1)
    chosen = top_k(size, [PIVOTS] * len(size), signals.valid)
    places = chosen.clamp(min=0)
    rows = torch.arange(len(size), device=size.device)[:, None]
    unit = normalize(signals.hidden.float(), dim=-1)
    similarity = unit @ unit[rows, places].transpose(1, 2)
    scores = -similarity.masked_fill((chosen < 0)[:, None], -torch.inf).amax(dim=-1)
    row, column = (chosen >= 0).nonzero(as_tuple=True)
    scores[row, chosen[row, column]] = 2
    return scores.masked_fill(~signals.valid, 0)
