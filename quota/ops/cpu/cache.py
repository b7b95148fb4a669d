"""KV4 on the CPU: the C++ kernels of `src/kv*` and `src/attention*` that store a cache and decode from it.

What is stored is bit for bit what the reference stores (where nothing is rotated: a rotation adds in another order).
Decoding reads the packed integers, unpacked once for all query heads that share a key head.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int64, c_void_p

import torch
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.cpu.library import integers, library, machine, pointers, rows_of, typed
from quota.ops.interface import CacheSpec, PackedTensor
from quota.ops.kv_integer import OUT_OF_RANGE

LARGEST_WIDTH = 1024
"""Channels of a head; the kernels keep one in a buffer of this size."""


class _Packed(ctypes.Structure):
    """`PackedTensor` of src/kv.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("packed", "scale", "zero")),
        *((f"{name}_step", c_int64) for name in ("packed", "scale", "zero")),
        *((f"{name}_{part}", c_int64) for name in ("packed", "scale", "zero") for part in ("sample", "head")),
        ("hadamard", c_int64),
    )

    @classmethod
    def of(cls, stored: PackedTensor) -> _Packed:
        parts = stored.packed, stored.scale, stored.zero
        strides = [part.stride() for part in parts]
        return cls(
            *(part.data_ptr() for part in parts),
            *(stride[2] for stride in strides),
            *(stride[dim] for stride in strides for dim in (0, 1)),
            stored.hadamard,
        )


def lacks_cache(spec: CacheSpec) -> str | None:
    """Why this backend cannot store or read such a cache; None if it can."""
    if spec.bits != 4:
        return f"its kernels store 4 bits, not {spec.bits}"
    if spec.width > LARGEST_WIDTH:
        return f"its kernels take heads of up to {LARGEST_WIDTH} channels, not {spec.width}"
    return None


def quantize_kv(x: Tensor, bits: int, hadamard: int) -> PackedTensor:
    """[B, G, T, D] -> packed; errors as `quota.ops.kv_integer.quantize_kv` and `pack`."""
    batch, heads, tokens, width = x.shape
    if width % 8:
        raise QuotaError(f"a head of {width} channels cannot be packed: not a multiple of 8; use kv_bits=16")
    x = rows_of(x.detach())
    packed = torch.empty(batch, heads, tokens, width // 2, dtype=torch.uint8)
    scale, zero = (torch.empty(batch, heads, tokens, 1, dtype=torch.float16) for _ in range(2))
    failed = library().quota_kv4_quantize(
        *(*machine(), *typed(x)),
        *integers(*x.shape, *x.stride()[:3], hadamard),
        *pointers(packed, scale, zero),
    )
    if failed:
        raise QuotaError(OUT_OF_RANGE)
    return PackedTensor(packed, scale, zero, bits, width, hadamard)


def dequantize_kv(stored: PackedTensor, dtype: torch.dtype) -> Tensor:
    """[B, G, T, D] in `dtype`, rotated back."""
    x = torch.empty(*stored.packed.shape[:3], stored.width, dtype=dtype)
    library().quota_kv4_dequantize(
        *(*machine(), ctypes.byref(_Packed.of(stored))),
        *(*integers(*x.shape), *typed(x)),
    )
    return x


def decode_attention(
    query: Tensor, keys: PackedTensor, values: PackedTensor, valid: Tensor | None, scaling: float
) -> Tensor:
    """One query a sequence over the packed cache: [B, H, 1, D] -> [B, H, 1, D]; zeros where nothing is valid."""
    batch, heads, _, width = query.shape
    groups, tokens = keys.packed.shape[1:3]
    query = rows_of(query.detach())
    valid = None if valid is None else valid.contiguous()
    # In the order that the model reads it in: one token's heads behind one another.
    out = torch.empty(batch, 1, heads, width, dtype=query.dtype)
    failed = library().quota_kv4_decode(
        *(*machine(), *typed(query)),
        *integers(batch, groups, heads // groups, width, tokens, *query.stride()[:2]),
        *(ctypes.byref(_Packed.of(keys)), ctypes.byref(_Packed.of(values))),
        *(c_void_p(None if valid is None else valid.data_ptr()), c_float(scaling), *pointers(out)),
    )
    if failed:
        raise MemoryError(f"no memory for the attention weights of {tokens} tokens")
    return out.transpose(1, 2)
