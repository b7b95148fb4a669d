"""Scorers: each says how much every visual token matters, and does nothing else.

A scorer is a module with

    SIGNALS                                      the fields of Signals that it reads, besides hidden and valid
    WEIGHTS                                      its metrics and their default weights ({} if it has none)
    score(signals, weights, percentiles)         Signals -> [batch, visual tokens], high means keep

Budgets, ties, padding and the cutting of hidden states, masks and cache belong to the Pruner. A new scorer
is one short file here and one line in `SCORERS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from quota.errors import QuotaError
from quota.pruning.scorers import (
    cdpruner,
    composite,
    dart,
    divprune,
    fastv,
    information,
    qapruner,
    random,
    uniform,
    visionzip,
)
from quota.pruning.scorers.signals import Signals

__all__ = ["SCORERS", "Scorer", "Signals", "scorer"]


class Scorer(Protocol):
    """The shape of a scorer module."""

    SIGNALS: tuple[str, ...]
    WEIGHTS: Mapping[str, float]

    def score(
        self, signals: Signals, weights: Mapping[str, float], percentiles: tuple[float, float] = ...
    ) -> Tensor: ...


SCORERS: dict[str, Scorer] = {
    "composite": composite,
    information.NAME: information,
    "random": random,
    "uniform": uniform,
    "fastv": fastv,
    "divprune": divprune,
    "visionzip": visionzip,
    "dart": dart,
    "cdpruner": cdpruner,
    "qapruner": qapruner,
}

_GONE = frozenset({"peaks", "early", "novelty"})
"""Names that recipes of earlier versions may have."""


def scorer(name: str) -> Scorer:
    """The scorer of that name; QuotaError with the known names if there is none."""
    if name in _GONE:
        raise QuotaError(f"scorer {name!r} is one of an earlier version; compress the original model again")
    if name not in SCORERS:
        raise QuotaError(f"unknown scorer {name!r}; known: {', '.join(SCORERS)}")
    return SCORERS[name]
