"""Scores of visual tokens and the choice among them on the CPU: one pass each, where torch takes some twenty."""

from __future__ import annotations

import torch
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.cpu.library import library
from quota.ops.cpu.pointers import integers, machine, pointers
from quota.selection import NOT_A_NUMBER


def peaks(products: Tensor, lengths: Tensor, weight: Tensor, valid: Tensor, first: int) -> Tensor:
    """[B, R, V] -> [B, R] float32, as `quota.ops.reference_peaks.peaks`."""
    scores = torch.empty(products.shape[:2])
    given = (tensor.contiguous() for tensor in (products, lengths, weight.float(), valid))
    failed = library().quota_peaks(*machine(), *pointers(*given), *integers(*products.shape, first), *pointers(scores))
    if failed:
        raise MemoryError(f"no memory for the scores of {valid.shape[1]} tokens")
    return scores


def best(score: Tensor, counts: Tensor, valid: Tensor) -> Tensor:
    """[R, V] bool, as `quota.selection.best`."""
    chosen = torch.empty(score.shape, dtype=torch.bool)
    given = score.float().contiguous(), valid.contiguous(), counts.long()
    failed = library().quota_best(*pointers(*given), *integers(*score.shape), *pointers(chosen))
    if failed == 1:
        raise QuotaError(NOT_A_NUMBER)
    if failed:
        raise MemoryError(f"no memory to choose among {score.shape[1]} tokens")
    return chosen
