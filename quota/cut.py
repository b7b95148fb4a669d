"""Where tokens stand once some have been dropped: the kept move to the right end of their sample, in order.

A batch [B, T] becomes [B, K], K the most that any sample keeps; a sample that keeps fewer has empty places on its left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quota.selection import best


@dataclass(frozen=True)
class Cut:
    """Which tokens go on, and where."""

    kept: Tensor
    """[B, T] bool."""
    slots: Tensor
    """[B, K] int64: the place that each of the kept has come from; some dropped one's where a row has none to give."""
    filled: Tensor
    """[B, K] bool: whether there is a token."""

    @classmethod
    def of(cls, kept: Tensor) -> Cut:
        """The cut that keeps these tokens, [B, T] bool."""
        return cls(kept, *right_align(kept))


def cut(score: Tensor, counts: Sequence[int], valid: Tensor, places: Tensor, others: Tensor) -> Cut:
    """Keep the `counts[r]` best visual tokens of each row (equation 5; ties by index), and all `others` [B, T] bool.

    score [R, V] floating, valid [R, V] bool, places [R, V] int64 in the flattened batch. QuotaError for a NaN score.
    """
    kept = others.clone()
    kept.view(-1)[places[best(score, counts, valid)]] = True
    return Cut.of(kept)


def right_align(kept: Tensor) -> tuple[Tensor, Tensor]:
    """`slots` and `filled` of a `Cut`, from which tokens are kept [B, T]."""
    if len(kept) == 1:
        slots = kept.nonzero()[None, :, 1]
        return slots, torch.ones_like(slots, dtype=torch.bool)
    most = int(kept.sum(dim=1).max())
    slots = kept.int().argsort(dim=1, stable=True)[:, kept.shape[1] - most :]
    return slots, kept.gather(1, slots)


def rows_at(x: Tensor, index: Tensor) -> Tensor:
    """x [B, L, D] at index [B, T] -> [B, T, D]."""
    # Whole rows: `gather` would look every number up.
    if len(x) == 1:
        return x.index_select(1, index[0])
    return x[torch.arange(len(x), device=x.device)[:, None], index]
