"""Which tokens go on (equation 5), and where they stand then: the kept move to the right end of their sample, in order.

A batch [B, T] becomes [B, K], K the most that any sample keeps; a sample that keeps fewer has empty places on its left.
Serving must not depend on chance, so ties go to the lower index, and every row is worked out on its own: a sample keeps
the same tokens alone, in a batch, or padded. Padding is marked by `valid` (True for a visual token of the sample); what
stands at the other places is never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quota.errors import QuotaError

NOT_A_NUMBER = "a token score is NaN; the scorer must return a number for every visual token"


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
    most = max(kept.sum(dim=1).tolist(), default=0)
    slots = kept.int().argsort(dim=1, stable=True)[:, kept.shape[1] - most :]
    return slots, kept.gather(1, slots)


def rows_at(x: Tensor, index: Tensor) -> Tensor:
    """x [B, L, D] at index [B, T] -> [B, T, D]."""
    # Whole rows: `gather` would look every number up.
    if len(x) == 1:
        return x.index_select(1, index[0])
    return x[torch.arange(len(x), device=x.device)[:, None], index]


def top_k(score: Tensor, counts: Sequence[int] | Tensor, valid: Tensor) -> Tensor:
    """Indices of the `counts[b]` highest scores among the valid tokens of each row, in ascending order.

    Ties go to the lower index. A count above a row's valid tokens keeps them all.

    Args:
        score: [B, V] floating; infinities are ranked, NaN is refused. counts: B numbers. valid: [B, V] bool.

    Returns int64 [B, K], K the most kept in any row; shorter rows end in -1. QuotaError for a NaN score.
    """
    chosen = best(score, counts, valid)
    most = int(chosen.sum(dim=-1).max()) if len(chosen) else 0
    # Stable, so the chosen stay in order.
    indices = chosen.int().argsort(dim=-1, descending=True, stable=True)[:, :most]
    return indices.masked_fill(~chosen.gather(-1, indices), -1)


def best(score: Tensor, counts: Sequence[int] | Tensor, valid: Tensor) -> Tensor:
    """`top_k` as truth: [B, V] bool, whether a token is among the best of its row."""
    if bool((score.isnan() & valid).any()):
        raise QuotaError(NOT_A_NUMBER)
    counts = torch.as_tensor(counts, device=score.device)[:, None]
    return (places(score, valid) < counts) & valid


def places(score: Tensor, valid: Tensor) -> Tensor:
    """Places in the order of `score` [B, V], the highest first, ties by index, what is not `valid` last."""
    # A valid -inf must still rank before padding, hence the clamp; a stable sort leaves ties in index order.
    ranked = score.clamp(min=torch.finfo(score.dtype).min).masked_fill(~valid, -torch.inf)
    order = ranked.argsort(dim=-1, descending=True, stable=True)
    ascending = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, ascending)
