"""The compiled kernels: finding and loading them, and the instruction set that they are to use.

The library is built when the package is installed (setup.py) from `src/`, and is plain C to the outside. Every function
takes the instruction set as its first argument: the best that the machine has, or the one that QUOTA_CPU_ISA names.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import c_int, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from quota.errors import QuotaError

ENVIRONMENT_VARIABLE = "QUOTA_CPU_ISA"
# In the order of `Isa` in src/isa.h.
ISAS = ("portable", "avx2", "avx512", "amx")

_FILE = Path(__file__).with_name("libquota_cpu.so")

# Name -> argument types; each function returns a C int.
_FUNCTIONS = {
    "quota_best_isa": (),
    "quota_linear": (
        *(c_int, c_int),
        *(c_void_p, c_int, c_int64, c_int64, c_int64, c_int64),
        *(c_void_p, c_void_p, c_int64, c_int64),
        *(c_void_p, c_void_p),
    ),
    "quota_group_sums": (c_int, c_int, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int64, c_void_p),
    "quota_quantize": (c_int, c_void_p, c_int, c_int64, c_int64, c_int64, c_int64, c_void_p, c_void_p),
}


def why_not() -> str | None:
    """Why the library cannot be used on this machine; None if it can."""
    found = _load()
    return found if isinstance(found, str) else None


def library() -> ctypes.CDLL:
    """The loaded library. QuotaError if there is none."""
    found = _load()
    if isinstance(found, str):
        raise QuotaError(f"the cpu backend cannot run: {found}")
    return found


def best_isa() -> str:
    """The best instruction set that this machine has; one of ISAS."""
    return ISAS[library().quota_best_isa()]


def isa() -> int:
    """Index into ISAS of the instruction set in use. QuotaError if the one asked for is unknown or not there."""
    asked = os.environ.get(ENVIRONMENT_VARIABLE)
    best = library().quota_best_isa()
    if not asked:
        return best
    if asked not in ISAS:
        raise QuotaError(f"{ENVIRONMENT_VARIABLE}={asked} is unknown; choose one of {', '.join(ISAS)}")
    if ISAS.index(asked) > best:
        raise QuotaError(f"{ENVIRONMENT_VARIABLE}={asked}: this machine has {ISAS[best]} at most; unset the variable")
    return ISAS.index(asked)


@lru_cache
def _load() -> ctypes.CDLL | str:
    if not _FILE.exists():
        return "not built: the install found no working C++ compiler; install one (g++) and reinstall quota-vlm"
    try:
        loaded = ctypes.CDLL(str(_FILE))
        for name, arguments in _FUNCTIONS.items():
            getattr(loaded, name).argtypes = arguments
    except (OSError, AttributeError) as error:
        return f"not built: {_FILE.name} cannot be loaded ({error}); reinstall quota-vlm"
    return loaded


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
