"""Evenly spaced tokens: every part of the picture alike, whatever it shows.

kept places = floor((k + 1/2) V / K)   for k = 0 .. K - 1
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from quota.errors import QuotaError
from quota.pruning.scorers.signals import Signals

SIGNALS: tuple[str, ...] = ("budget",)
WEIGHTS: Mapping[str, float] = {}


def score(signals: Signals, weights: Mapping[str, float], percentiles: tuple[float, float] = (1.0, 99.0)) -> Tensor:
    """Signals of B rows with V visual tokens -> score [B, V]: 1 for those to keep, 0 for the others."""
    if signals.budget is None:
        raise QuotaError("evenly spaced tokens need to know how many are kept; give signals.budget")
    tokens = signals.valid.sum(dim=1, keepdim=True)
    place = signals.valid.cumsum(dim=1) - 1
    return evenly_spaced(place, tokens, signals.budget[:, None]).masked_fill(~signals.valid, False).float()


def evenly_spaced(place: Tensor, tokens: Tensor, budget: Tensor) -> Tensor:
    """Whether each `place` (0 .. tokens - 1) is one of `budget` evenly spaced ones; integers, so nothing is rounded."""
    # The number of chosen places below p is ceil(p K / V - 1/2).
    below = -((tokens - 2 * place * budget) // (2 * tokens))
    up_to = -((tokens - 2 * (place + 1) * budget) // (2 * tokens))
    return up_to > below
