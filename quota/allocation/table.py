"""The table of single cuts: what it says between its entries, and what the cuts of a schedule add up to.

E_l(k) is the output error when all visual tokens but k go after layer l and nothing else is dropped
(quota/allocation/drops.py). It is made to rise as k falls (a running maximum), so no step is charged less than nothing.
Between two counts that were measured

    ln(E_l(k) + e)   is linear in k                          e = 0.1 nats, as in the mean that E is; E_l(V0) = 0

Below the smallest of them the table says nothing, and nothing is made up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import accumulate

from quota.errors import QuotaError
from quota.pruning.schedule import Schedule

Errors = Mapping[int, Mapping[int, float]]
"""Candidate layer -> number of tokens left after it -> output error, over the same counts for every layer."""

SMALLEST = 0.1
"""e, nats: errors below it are as good as none."""


def rising(row: Mapping[int, float], tokens: int) -> dict[int, float]:
    """The row with all `tokens` at no error, and no fewer tokens at less error than more of them."""
    counts = [tokens, *sorted(row.keys() - {tokens}, reverse=True)]
    return dict(zip(counts, accumulate([0.0, *(row[count] for count in counts[1:])], max), strict=True))


def error_at(row: Mapping[int, float], count: int, tokens: int) -> float:
    """E_l(k) at any `count` of `tokens`. Raises QuotaError below the smallest one of the row."""
    known = rising(row, tokens)
    if count in known:
        return known[count]
    if count < min(known):
        raise QuotaError(
            f"drops were measured down to {min(known)} of {tokens} visual tokens, not to {count}; "
            "keep more, or give the calibration set to measure it"
        )
    above, below = min(one for one in known if one > count), max(one for one in known if one < count)
    low, high = (math.log(known[one] + SMALLEST) for one in (above, below))
    return math.exp(low + (high - low) * (above - count) / (above - below)) - SMALLEST


def with_count(errors: Errors, count: int, tokens: int) -> Errors:
    """The table with an entry for `count` of `tokens` in every row. Errors as `error_at`."""
    if count >= tokens:
        return errors
    return {layer: {**row, count: error_at(row, count, tokens)} for layer, row in errors.items()}


def charge(errors: Errors, schedule: Schedule, tokens: int) -> float:
    """What the cuts of `schedule` add up to: sum_i E_{l_i}(k_i) - E_{l_i}(k_{i-1}), k_0 = `tokens`.

    Raises QuotaError for a layer that the table does not have, and as `error_at`.
    """
    total, before = 0.0, tokens
    for layer, count in zip(schedule.layers, schedule.counts(tokens), strict=True):
        if layer not in errors:
            raise QuotaError(f"drops were measured after the layers {sorted(errors)}, not after {layer}")
        total += error_at(errors[layer], count, tokens) - error_at(errors[layer], before, tokens)
        before = count
    return total
