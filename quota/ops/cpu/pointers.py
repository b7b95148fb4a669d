"""Arguments for the compiled functions, in the C types that they declare."""

from __future__ import annotations

from ctypes import c_int, c_int64, c_void_p

import torch
from torch import Tensor

from quota.ops.cpu.library import isa

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Type of a tensor -> how the kernels call it."""


def machine() -> tuple[c_int, c_int]:
    """Instruction set and threads, the first arguments of every function."""
    return c_int(isa()), c_int(torch.get_num_threads())


def typed(x: Tensor) -> tuple[c_void_p, c_int]:
    """Where x starts, and its type."""
    return c_void_p(x.data_ptr()), c_int(TYPES[x.dtype])


def pointers(*tensors: Tensor) -> tuple[c_void_p, ...]:
    """Where each of these starts."""
    return tuple(c_void_p(tensor.data_ptr()) for tensor in tensors)


def integers(*numbers: int) -> tuple[c_int64, ...]:
    """Sizes and strides."""
    return tuple(map(c_int64, numbers))


def rows_of(x: Tensor) -> Tensor:
    """x, or a copy if its last dimension is not contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()
