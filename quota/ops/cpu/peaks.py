"""The score of visual tokens on the CPU: one pass over their products, where torch takes some twenty."""

from __future__ import annotations

import torch
from torch import Tensor

from quota.ops.cpu.library import library
from quota.ops.cpu.pointers import integers, machine, pointers


def peaks(products: Tensor, lengths: Tensor, weight: Tensor, valid: Tensor, first: int) -> Tensor:
    """[B, R, V] -> [B, R] float32, as `quota.ops.reference_peaks.peaks`."""
    scores = torch.empty(products.shape[:2])
    given = (tensor.contiguous() for tensor in (products, lengths, weight.float(), valid))
    failed = library().quota_peaks(*machine(), *pointers(*given), *integers(*products.shape, first), *pointers(scores))
    if failed:
        raise MemoryError(f"no memory for the scores of {valid.shape[1]} tokens")
    return scores
