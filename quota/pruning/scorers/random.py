"""Random tokens: what any score must beat.

Serving may not depend on chance, so the draw is made from the number of tokens alone: equal rows keep equal places.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from quota.pruning.scorers.signals import Signals

SIGNALS: tuple[str, ...] = ()
WEIGHTS: Mapping[str, float] = {}


def score(signals: Signals, weights: Mapping[str, float], percentiles: tuple[float, float] = (1.0, 99.0)) -> Tensor:
    """Signals of B rows with V visual tokens -> score [B, V] in [0, 1), high means keep."""
    scores = torch.zeros(signals.valid.shape, dtype=torch.float32)
    for row, valid in zip(scores, signals.valid.cpu(), strict=True):
        count = int(valid.sum())
        row[valid] = torch.rand(count, generator=torch.Generator().manual_seed(count))
    return scores.to(signals.hidden.device)
