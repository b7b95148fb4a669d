"""A linear map of each key head in front of the cache's quantiser, and the way back.

    k' = (k - c) M         what is read is k' M^-1, which is k - c: attention does not see c (quota/attention/keys.py)

The cache's Hadamard rotation H follows M. A kernel does both at once, so that the rotation costs nothing:

    stored = k into + offset        into = M H       offset = -c into
    read   = stored back            back = H M^-1
    q k^T  = (q back^T) stored^T    up to what is the same for all keys of a query
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from quota.ops.hadamard import block_hadamard


@dataclass(frozen=True)
class Folded:
    """A transform and the rotation behind it as one map of G heads, float32."""

    into: Tensor
    """[G, D, D]"""
    offset: Tensor
    """[G, D]"""
    back: Tensor
    """[G, D, D]"""


@dataclass(frozen=True, eq=False)
class HeadTransform:
    """c and M of G heads."""

    center: Tensor
    """float32 [G, D]"""
    matrix: Tensor
    """[G, D, D], as the checkpoint holds it: a copy in float32 would be dead weight beside what a backend prepares."""
    prepared: dict[tuple[str, int], Any] = field(default_factory=dict)
    """(Backend name, block of the rotation) -> whatever that backend keeps for this transform."""

    def apply(self, x: Tensor) -> Tensor:
        """k' of x [B, G, T, D], float32."""
        with torch.autocast(x.device.type, enabled=False):
            return (x.float() - self.center.unsqueeze(1)) @ self.matrix.float()

    def undo(self, x: Tensor) -> Tensor:
        """k' M^-1 of x [B, G, T, D] float32."""
        with torch.autocast(x.device.type, enabled=False):
            return x @ self.inverse

    @cached_property
    def inverse(self) -> Tensor:
        """M^-1 [G, D, D], kept."""
        return _inverse(self.matrix)

    def folded(self, hadamard: int) -> Folded:
        """With a rotation in blocks of `hadamard` channels behind it; made anew, and a backend keeps what it needs."""
        with torch.inference_mode(False), torch.autocast(self.matrix.device.type, enabled=False):
            into = block_hadamard(self.matrix.float(), hadamard)
            # H is symmetric: H A is (A^T H)^T.
            back = block_hadamard(_inverse(self.matrix).mT.contiguous(), hadamard).mT.contiguous()
            return Folded(into, -(self.center.unsqueeze(1) @ into).squeeze(1), back)


def _inverse(matrix: Tensor) -> Tensor:
    # Of an inference tensor others could not make use.
    with torch.inference_mode(False):
        return torch.linalg.inv(matrix.double()).float()
