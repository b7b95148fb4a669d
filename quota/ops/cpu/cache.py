"""KV4 on the CPU: the C++ kernels of `src/kv*` and `src/attention*` that store a cache and decode from it.

What is stored is bit for bit what the reference stores (where nothing is rotated: a rotation adds in another order).
Decoding reads the packed integers, unpacked once for all query heads that share a key head.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_int64, c_void_p

import torch
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.cpu.library import address, rows_of, run, typed
from quota.ops.interface import CacheSpec, PackedTensor
from quota.ops.kv_integer import OUT_OF_RANGE

LARGEST_WIDTH = 1024
"""Channels of a head; the kernels keep one in a buffer of this size."""
_BITS = 4


class _Packed(ctypes.Structure):
    """`PackedTensor` of src/kv.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("packed", "scale", "zero")),
        *((f"{name}_step", c_int64) for name in ("packed", "scale", "zero")),
        *((f"{name}_{part}", c_int64) for name in ("packed", "scale", "zero") for part in ("sample", "head")),
        ("hadamard", c_int64),
    )

    @classmethod
    def of(cls, stored: PackedTensor, *shape: int) -> _Packed:
        """For kernels that read [B, G, T, D]. QuotaError if it holds anything else."""
        *rows, width = shape
        if stored.bits != _BITS:
            raise QuotaError(f"the cpu backend reads caches of {_BITS} bits, not {stored.bits}; choose another backend")
        strides = [part.stride() for part in (stored.packed, stored.scale, stored.zero)]
        return cls(
            address("packed numbers", stored.packed, (*rows, width // 2), torch.uint8, rows=True),
            address("scales", stored.scale, (*rows, 1), torch.float16, rows=True),
            address("zeros", stored.zero, (*rows, 1), torch.float16, rows=True),
            *(stride[2] for stride in strides),
            *(stride[dim] for stride in strides for dim in (0, 1)),
            stored.hadamard,
        )


def lacks_cache(spec: CacheSpec) -> str | None:
    """Why this backend cannot store or read such a cache; None if it can."""
    if spec.bits != _BITS:
        return f"its kernels store {_BITS} bits, not {spec.bits}"
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
    run(
        "quota_kv4_quantize",
        *typed("keys or values", x, x.shape, rows=True),
        *(*x.shape, *x.stride()[:3], hadamard),
        *(packed.data_ptr(), scale.data_ptr(), zero.data_ptr()),
        refusal=OUT_OF_RANGE,
        work="keys or values",
    )
    return PackedTensor(packed, scale, zero, bits, width, hadamard)


def dequantize_kv(stored: PackedTensor, dtype: torch.dtype) -> Tensor:
    """[B, G, T, D] in `dtype`, rotated back."""
    batch, heads, tokens, _ = stored.packed.shape
    x = torch.empty(batch, heads, tokens, stored.width, dtype=dtype)
    packed = _Packed.of(stored, *x.shape)
    run("quota_kv4_dequantize", byref(packed), *x.shape, *typed("outputs", x, x.shape), work="keys or values")
    return x


def decode_attention(
    query: Tensor, keys: PackedTensor, values: PackedTensor, valid: Tensor | None, scaling: float
) -> Tensor:
    """One query a sequence over the packed cache: [B, H, 1, D] -> [B, H, 1, D]; zeros where nothing is valid."""
    batch, heads, _, width = query.shape
    _, groups, tokens, _ = keys.packed.shape
    shared = heads // max(1, groups)
    query = rows_of(query.detach())
    valid = None if valid is None else valid.contiguous()
    # In the order that the model reads it in: one token's heads behind one another.
    out = torch.empty(batch, 1, heads, width, dtype=query.dtype)
    stored = [_Packed.of(part, batch, groups, tokens, width) for part in (keys, values)]
    run(
        "quota_kv4_decode",
        *typed("queries", query, (batch, groups * shared, 1, width), rows=True),
        *(batch, groups, shared, width, tokens, *query.stride()[:2]),
        *map(byref, stored),
        None if valid is None else address("valid", valid, (batch, tokens), torch.bool),
        *(scaling, out.data_ptr()),
        work=f"the attention weights of {tokens} tokens",
    )
    return out.transpose(1, 2)
