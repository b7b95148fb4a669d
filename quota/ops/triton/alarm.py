"""Word of NaN and infinity from kernels that nobody waits for.

A kernel that meets such a number stores 1 in a word of the host's memory, which the GPU reaches directly (page-locked).
Reading that word costs the host nothing and never waits, so every call looks at it: before, for calls that were still
running when they returned, and after, which on the CPU (the interpreter) is at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from quota.errors import QuotaError


class Alarm:
    """One kind of trouble, and the error that it becomes."""

    def __init__(self, message: str) -> None:
        self._message = message
        self._word: Tensor | None = None

    @contextmanager
    def listen(self) -> Iterator[Tensor]:
        """The word [1] int32 for a kernel to store 1 in. Raises QuotaError before or after the block if one did."""
        if self._word is None:
            with torch.inference_mode(False):
                self._word = torch.zeros(1, dtype=torch.int32, device="cpu", pin_memory=torch.cuda.is_available())
        self._check(self._word)
        yield self._word
        self._check(self._word)

    def _check(self, word: Tensor) -> None:
        if word.item():
            word.zero_()
            raise QuotaError(self._message)
