"""Metrics of visual tokens become one score; plain functions of [batch, tokens] tensors.

    normalize   one metric -> [0, 1] within its layer: clip at P1 and P99, rescale
    combine     score = sum of weight * normalised metric (.45 inter + .25 mag + .10 intra + .20 risk)

(docs/method.md, equations 6-9; arXiv 2604.17320.) Every row is worked out on its own, and padding, marked by `valid`,
is never read.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from quota.errors import QuotaError


def normalize(metric: Tensor, valid: Tensor, percentiles: tuple[float, float] = (1.0, 99.0)) -> Tensor:
    """Clip each row to its two percentiles over the valid tokens and rescale that range to [0, 1].

    Percentiles interpolate linearly. A row without spread between them (a constant metric, a single token)
    says nothing about its tokens and becomes zeros; so do invalid places.

    Args:
        metric: [B, V] floating. valid: [B, V] bool. percentiles: low and high, in percent.

    Returns [B, V] float32 without NaN. Raises QuotaError if a valid entry is NaN or infinite.
    """
    # float64: the range of a finite float32 metric cannot overflow.
    metric = metric.double()
    if not bool((metric.isfinite() | ~valid).all()):
        raise QuotaError("a token metric holds NaN or infinity; run the model in bfloat16 or float32, not float16")
    if metric.shape[-1] == 0:
        return metric.float()
    # Padding sorts behind every valid entry, so a rank among the valid ones is a column here.
    ordered = metric.masked_fill(~valid, torch.inf).sort(dim=-1).values
    low, high = (_percentile(ordered, valid.sum(dim=-1), percent) for percent in percentiles)
    spread = high - low
    scaled = (metric - low).clamp(min=0).minimum(spread) / torch.where(spread > 0, spread, 1)
    return scaled.masked_fill(~valid, 0).float()


def combine(metrics: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The weighted sum of normalised metrics, [B, V] each -> [B, V].

    `weights` and `metrics` must name the same things, at least one: a weight without its metric, or a
    metric that was computed and would go unused, raises QuotaError. The sum runs in alphabetical order, so
    that the order of keys in a file cannot change a bit.
    """
    if not metrics or set(metrics) != set(weights):
        raise QuotaError(f"score weights {sorted(weights)} do not match the metrics {sorted(metrics)}")
    first, *others = sorted(metrics)
    score = weights[first] * metrics[first]
    # One addition after the other: a reduction may group its terms by the shape of the batch.
    for name in others:
        score = score + weights[name] * metrics[name]
    return score


def _percentile(ordered: Tensor, count: Tensor, percent: float) -> Tensor:
    """Percentile of the first `count[b]` entries of each sorted row: [B, V], [B] -> [B, 1].

    torch.quantile knows no padding, and nanquantile need not agree with it to the last bit.
    """
    rank = (count - 1).clamp(min=0).double()[:, None] * percent / 100
    below = ordered.gather(-1, rank.floor().long())
    above = ordered.gather(-1, rank.ceil().long())
    return torch.lerp(below, above, rank - rank.floor())
