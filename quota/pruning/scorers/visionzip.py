"""VisionZip: mostly what the vision tower's [CLS] token looks at, and a few tokens for all the rest.

    dominant    the 84% of the K whose tower attention is highest (the paper's 54 of 64)
    contextual  16% of the K, evenly spaced among the others

(Yang et al., CVPR 2025, arXiv 2412.04467.) The paper averages every remaining token into the contextual one with the
most similar key; here contextual tokens stay as they are, as a scorer chooses and changes nothing. The paper prunes
what the projector puts out.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.choice import top_k
from quota.pruning.scorers.signals import Signals
from quota.pruning.scorers.uniform import evenly_spaced

SIGNALS: tuple[str, ...] = ("tower", "budget")
WEIGHTS: Mapping[str, float] = {}

DOMINANT = 54 / 64


def score(signals: Signals, weights: Mapping[str, float], percentiles: tuple[float, float] = (1.0, 99.0)) -> Tensor:
    """Signals of B rows with V visual tokens -> score [B, V]: 2 for dominant, 1 for contextual, 0 for other tokens."""
    if signals.tower is None or signals.budget is None:
        raise QuotaError("VisionZip needs the vision tower's attention and the number of tokens to keep")
    dominant = (signals.budget * DOMINANT).round().long()
    first = top_k(signals.tower, dominant, signals.valid)
    scores = torch.zeros(signals.valid.shape, dtype=torch.float32, device=signals.hidden.device)
    row, column = (first >= 0).nonzero(as_tuple=True)
    scores[row, first[row, column]] = 2
    rest = signals.valid & (scores == 0)
    left = rest.sum(dim=1, keepdim=True).clamp(min=1)
    contextual = evenly_spaced(rest.cumsum(dim=1) - 1, left, (signals.budget - dominant)[:, None])
    return scores.masked_fill(rest & contextual, 1)
