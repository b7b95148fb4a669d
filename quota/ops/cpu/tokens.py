"""Scores of visual tokens and the choice among them on the CPU: one pass each, where torch takes some twenty."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref, c_int64

import torch
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.choice import NOT_A_NUMBER, Cut
from quota.ops.cpu.library import integers, library, machine, pointers


def peaks(hidden: Tensor, weight: Tensor, valid: Tensor) -> Tensor:
    """[B, V, D] -> [B, V] float32, as `quota.ops.reference.tokens.peaks`."""
    hidden, weight, valid = hidden.float().contiguous(), weight.float().contiguous(), valid.contiguous()
    scores = torch.empty(valid.shape)
    given = pointers(hidden, weight, valid), integers(*hidden.shape), pointers(scores)
    failed = library().quota_peaks(*machine(), *(argument for group in given for argument in group))
    if failed:
        raise MemoryError(f"no memory for the scores of {valid.shape[1]} tokens")
    return scores


def cut(score: Tensor, counts: Sequence[int], valid: Tensor, places: Tensor, others: Tensor) -> Cut:
    """As `quota.ops.choice.cut`."""
    score, valid, places, kept = score.float().contiguous(), valid.contiguous(), places.contiguous(), others.clone()
    slots, filled = torch.empty(kept.numel(), dtype=torch.int64), torch.empty(kept.numel(), dtype=torch.bool)
    most = c_int64()
    failed = library().quota_cut(
        *(*pointers(score, valid, places), (c_int64 * len(counts))(*counts), *integers(*score.shape)),
        *(*pointers(kept), *integers(*kept.shape), *pointers(slots, filled), byref(most)),
    )
    if failed == 1:
        raise QuotaError(NOT_A_NUMBER)
    if failed:
        raise MemoryError(f"no memory to choose among {score.shape[1]} tokens")
    layout = (len(kept), most.value), (most.value, 1)
    return Cut(kept, slots.as_strided(*layout), filled.as_strided(*layout))
