"""The published score: attention, magnitude and quantisation risk, weighed together.

    mag   = ||v_i||_2                                         large tokens carry more into the residual stream
    inter = 1/H sum_h sum_{j in text}   A_h[j, i]             what the question looks at
    intra = 1/H sum_h sum_{k in visual} A_h[k, i]             what the picture itself looks at
    risk  = ||Q(v_i) - v_i||_2                                what quantises badly: high risk means keep
    score = .45 inter + .25 mag + .10 intra + .20 risk        each normalised within its layer

(equations 6-9, arXiv 2604.17320.) All four come from the deployed forward pass. In full precision there is
no risk: give weights without it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from quota.errors import QuotaError
from quota.pruning.scorers.metrics import combine, normalize
from quota.pruning.scorers.signals import Signals

SIGNALS: tuple[str, ...] = ("inter", "intra", "risk")
WEIGHTS: Mapping[str, float] = {"inter": 0.45, "mag": 0.25, "intra": 0.10, "risk": 0.20}


def score(signals: Signals, weights: Mapping[str, float], percentiles: tuple[float, float] = (1.0, 99.0)) -> Tensor:
    """Signals of B samples with V visual tokens -> score [B, V] float32, high means keep, 0 at padding.

    Only the metrics named in `weights` are used. Raises QuotaError for an unknown name, no name at all, or a
    metric that the forward pass did not measure.
    """
    if not weights:
        return combine({}, weights)
    # All at once, as further rows: each row is worked out on its own, and few large steps cost less than many small.
    metrics = torch.stack([_metric(name, signals).double() for name in weights])
    valid = signals.valid.expand(metrics.shape)
    normalized = normalize(metrics.flatten(0, 1), valid.flatten(0, 1), percentiles).view(metrics.shape)
    return combine(dict(zip(weights, normalized, strict=True)), weights)


def _metric(name: str, signals: Signals) -> Tensor:
    if name not in WEIGHTS:
        raise QuotaError(f"unknown metric {name!r} in the score weights; known: {', '.join(WEIGHTS)}")
    if name == "mag":
        return torch.linalg.vector_norm(signals.hidden.float(), dim=-1)
    metric = getattr(signals, name)
    if metric is None:
        raise QuotaError(f"the score weighs {name!r}, which this forward pass does not measure; set no weight for it")
    return metric
