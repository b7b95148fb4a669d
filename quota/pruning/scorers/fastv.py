"""FastV: the attention that the last text token pays to each visual token, averaged over heads.

    score_i = 1/H sum_h A_h[last, i]

("An Image is Worth 1/2 Tokens After Layer 2", Chen et al., ECCV 2024, arXiv 2403.06764.) The paper cuts once, after the
second decoder layer. PyramidDrop (Xing et al., CVPR 2025, arXiv 2410.17247) takes the same score at several stages, and
each stage drops the same share: that is a schedule (quota_lab/study/methods.py), not another scorer.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from quota.errors import QuotaError
from quota.pruning.scorers.signals import Signals

SIGNALS: tuple[str, ...] = ("last",)
WEIGHTS: Mapping[str, float] = {}


def score(signals: Signals, weights: Mapping[str, float], percentiles: tuple[float, float] = (1.0, 99.0)) -> Tensor:
    """Signals of B rows with V visual tokens -> score [B, V]; QuotaError before the first layer, without attention."""
    if signals.last is None:
        raise QuotaError("FastV needs attention, which no layer has measured yet; prune at layer 0 or later")
    return signals.last
