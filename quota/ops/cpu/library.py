"""The compiled kernels: finding and loading them, and the one way in.

The library is built when the package is installed (setup.py) from `src/`, and is plain C to the outside. Every function
takes the instruction set as its first argument: the best that the machine has, or the one that QUOTA_CPU_ISA names.

The kernels cannot know how large a buffer is. So every pointer comes from `address`, which compares a tensor with the
sizes that the kernel is told, or is that of a tensor that `new` has made; and `run` raises what the kernel says of
sizes that it is not made for.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from ctypes import c_char_p, c_float, c_int, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.cpu.sources import digest
from quota.ops.cpu.threads import threads

ENVIRONMENT_VARIABLE = "QUOTA_CPU_ISA"
# In the order of `Isa` in src/isa.h.
ISAS = ("portable", "avx2", "avx512", "amx")
# In the order of `FloatType` in src/linear.h.
FLOATS = (torch.float32, torch.bfloat16, torch.float16)

_FILE = Path(__file__).with_name("libquota_cpu.so")

# In the order of `Status` in src/checks.h.
_REFUSED, _NO_MEMORY, _WRONG_SIZES = 1, 2, 3

_KINDS = {"i": c_int, "n": c_int64, "p": c_void_p, "f": c_float}
# Name -> kinds of arguments; each function returns an int. The first two are instruction set and threads, and "pi" a
# tensor of any floating type, with its type.
_FUNCTIONS = {
    "quota_best_isa": "",
    "quota_has_bf16": "i",
    "quota_linear": "ii pi nnnn i pn",
    "quota_sums": "ii p nn p",
    "quota_quantize": "ii pi nnnn i pp",
    "quota_kv4_store": "ii i nnnn pn",
    "quota_kv4_dequantize": "ii p nnnn pi",
    "quota_kv4_decode": "ii pi nnnnn nn pp pp f p",
    "quota_softmax_sums": "ii pi nnnn pp nn f n p",
    "quota_attention": "ii pppp p nnnnn i pp n f pp",
    "quota_activation_error": "ii pi nn n nn i p",
    "quota_information": "ii ppp nnn f p",
    "quota_cut": "ii ppp p nn p nn pp p",
    "quota_norm": "ii pi nn pp fii p",
    "quota_activate": "ii pi n i p",
    "quota_gated": "ii pi p n i p",
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


@lru_cache
def isa() -> int:
    """Index into ISAS of the instruction set in use, as the variable says when it is first asked for.

    QuotaError if that is unknown or not there.
    """
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
        for name, kinds in _FUNCTIONS.items():
            getattr(loaded, name).argtypes = [_KINDS[kind] for kind in kinds.replace(" ", "")]
        loaded.quota_sources.restype = c_char_p
    except (OSError, AttributeError) as error:
        return f"not built: {_FILE.name} cannot be loaded ({error}); reinstall quota-vlm"
    if digest() not in (None, loaded.quota_sources().decode()):
        return f"not built: {_FILE.name} comes from other sources than those beside it; reinstall quota-vlm"
    return loaded


def run(name: str, *arguments: Any, refusal: str = "", work: str) -> None:
    """Call the kernel `name` with its arguments behind instruction set and threads.

    QuotaError for sizes that it is not made for, and with `refusal` for numbers that cannot be stored or ranked;
    MemoryError, which says for what `work`, if it finds none.
    """
    status = getattr(library(), name)(isa(), threads(), *arguments)
    if status == _REFUSED:
        raise QuotaError(refusal)
    if status == _NO_MEMORY:
        raise MemoryError(f"no memory for {work}")
    if status == _WRONG_SIZES:
        raise QuotaError(f"the cpu backend is not made for such sizes of {work}; choose another backend")


def require(name: str, tensor: Tensor, shape: Sequence[int], *types: torch.dtype, rows: bool = False) -> None:
    """QuotaError, which names the tensor, unless it is of this shape, one of `types`, in main memory and contiguous.

    With `rows` its last dimension alone must be contiguous.
    """
    dense = tensor.is_contiguous() or (rows and (tensor.stride(-1) == 1 or tensor.shape[-1] == 1))
    if dense and tensor.dtype in types and tensor.shape == shape and tensor.is_cpu:
        return
    found = f"{tensor.dtype} {list(tensor.shape)} with strides {list(tensor.stride())} on {tensor.device.type}"
    meant = f"contiguous {' or '.join(map(str, types))} {list(shape)}"
    raise QuotaError(f"the cpu backend takes {name} as {meant}; convert what it was given: {found}")


def address(name: str, tensor: Tensor, shape: Sequence[int], *types: torch.dtype, rows: bool = False) -> int:
    """Where a tensor starts that is as `require` says."""
    require(name, tensor, shape, *types, rows=rows)
    return tensor.data_ptr()


def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory for a kernel to fill, whatever torch's defaults are: transformers changes them while it loads a model."""
    return torch.empty(shape, dtype=dtype, device="cpu")


def typed(name: str, tensor: Tensor, shape: Sequence[int], rows: bool = False) -> tuple[int, int]:
    """`address` of a floating tensor, and how the kernels call its type."""
    return address(name, tensor, shape, *FLOATS, rows=rows), FLOATS.index(tensor.dtype)


def rows_of(x: Tensor) -> Tensor:
    """x, or a copy if its last dimension is not contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()
