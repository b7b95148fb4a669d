"""Farthest first among the tokens as they entered the decoder: an order that the picture alone decides.

    next  = argmax over the tokens left of  min_{j chosen} (1 - cos(v_i, v_j))         v as it entered the first layer

That is DivPrune's order (quota/pruning/scorers/divprune.py), at whatever layer tokens are dropped: it is found once, at
the first cut, and later cuts keep the first of it. Whether attention from the text knows better depends on the model.
Where it rests on a few tokens while the answer is spread over more (a sign whose letters are patches of their own),
what it leaves out is lost. Calibration measures both (quota/allocation/scores.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from quota.errors import QuotaError
from quota.pruning.scorers.divprune import distances, farthest_first
from quota.pruning.scorers.signals import Signals

SIGNALS: tuple[str, ...] = ("entering", "budget")
WEIGHTS: Mapping[str, float] = {}


def score(signals: Signals, weights: Mapping[str, float], percentiles: tuple[float, float] = (1.0, 99.0)) -> Tensor:
    """Signals of B rows with V visual tokens -> score [B, V]: V for the first choice, then V - 1, and so on."""
    if signals.entering is None:
        raise QuotaError("the score 'early' needs the tokens as they entered the decoder")
    return farthest_first(distances(signals.entering), signals.valid, signals.budget)
