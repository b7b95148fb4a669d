"""KV4 on the CPU: the C++ kernels of `src/kv*` and `src/attention*` that store a cache and decode from it.

What is stored is bit for bit what the reference stores (where nothing is rotated or transformed, which adds in another
order). Storing is one pass over blocks of tokens, from keys and values to what attention reads of them. Decoding reads
the packed integers, unpacked once for all query heads that share a key head.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_int64, c_void_p
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional

from quota.errors import QuotaError
from quota.ops.cpu.library import address, new, require, rows_of, run, typed
from quota.ops.head_transform import HeadTransform
from quota.ops.interface import CacheSpec, PackedTensor
from quota.ops.kv_integer import OUT_OF_RANGE, packed_width

LARGEST_WIDTH = 1024
"""Channels of a head; the kernels keep one in a buffer of this size."""
_BITS = 4
# Numbers to which rows of matrices are padded (`columns_of` in src/kv.h).
_LINE = 16
# `PANEL_COLUMNS` there.
_PANEL = 32


class _Packed(ctypes.Structure):
    """`PackedTensor` of src/kv.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("packed", "scale", "zero")),
        *((f"{name}_step", c_int64) for name in ("packed", "scale", "zero")),
        *((f"{name}_{part}", c_int64) for name in ("packed", "scale", "zero") for part in ("sample", "head")),
        ("hadamard", c_int64),
        *((name, c_void_p) for name in ("into", "offset", "back")),
    )

    @classmethod
    def of(cls, stored: PackedTensor, *shape: int) -> _Packed:
        """For kernels that read or write [B, G, T, D]; QuotaError if it holds anything else."""
        packed, scale, zero = parts = stored.packed, stored.scale, stored.zero
        places = [part.data_ptr() for part in parts]
        known = _known.get(stored)
        if known is not None and known[:2] == (shape, places):
            return known[2]
        *rows, width = shape
        if stored.bits != _BITS:
            raise QuotaError(f"the cpu backend reads caches of {_BITS} bits, not {stored.bits}; choose another backend")
        require("packed numbers", packed, (*rows, width // 2), torch.uint8, rows=True)
        require("scales", scale, (*rows, 1), torch.float16, rows=True)
        require("zeros", zero, (*rows, 1), torch.float16, rows=True)
        strides = [part.stride() for part in parts]
        made = cls(
            *places,
            *(stride[2] for stride in strides),
            *(stride[dim] for stride in strides for dim in (0, 1)),
            stored.hadamard,
            *_maps(stored, shape[1]),
        )
        _known[stored] = shape, places, made
        return made


# A cache that grows into its memory is the same for many steps.
_known: WeakKeyDictionary[PackedTensor, tuple[tuple[int, ...], list[int], _Packed]] = WeakKeyDictionary()


def _panels(matrix: Tensor) -> Tensor:
    """[G, D, D], padded, as `HeadMap` of src/kv.h wants it: [G, D, columns] in memory panel by panel."""
    padded = functional.pad(matrix, (0, -matrix.shape[2] % _LINE))
    return torch.cat([panel.flatten(1) for panel in padded.split(_PANEL, dim=2)], dim=1).view(padded.shape)


class _Input(ctypes.Structure):
    """`KvInput` of src/kv.h."""

    _fields_ = (
        ("x", c_void_p),
        *((name, c_int64) for name in ("sample_step", "head_step", "token_step")),
        ("to", _Packed),
        ("slot", c_int64),
        ("read", c_void_p),
    )


def _maps(stored: PackedTensor, heads: int) -> Sequence[int | None]:
    """Addresses of a transform's matrices; none if there is no transform."""
    if stored.transform is None:
        return None, None, None
    place = "cpu", stored.hadamard
    if place not in stored.transform.prepared:
        folded, shape = stored.transform.folded(stored.hadamard), (heads, stored.width)
        require("a transform's center", folded.offset, shape, torch.float32)
        require("a transform's matrix", folded.into, (*shape, stored.width), torch.float32)
        offset = functional.pad(folded.offset, (0, -stored.width % _LINE)).contiguous()
        # Several threads may be the first. What one has put there stays: another's kernel may be reading it.
        stored.transform.prepared.setdefault(place, (_panels(folded.into), offset, _panels(folded.back)))
    into, offset, back = stored.transform.prepared[place]
    if into.shape[:2] != (heads, stored.width):
        raise QuotaError(f"a transform for {len(into)} heads cannot be that of {heads}; convert what it was given")
    return into.data_ptr(), offset.data_ptr(), back.data_ptr()


def lacks_cache(spec: CacheSpec) -> str | None:
    """Why this backend cannot store or read such a cache; None if it can."""
    if spec.bits != _BITS:
        return f"its kernels store {_BITS} bits, not {spec.bits}"
    if spec.width > LARGEST_WIDTH:
        return f"its kernels take heads of up to {LARGEST_WIDTH} channels, not {spec.width}"
    return None


def quantize_kv(x: Tensor, bits: int, hadamard: int, transform: HeadTransform | None = None) -> PackedTensor:
    """[B, G, T, D] -> packed; errors as `quota.ops.kv_integer.quantize_kv` and `pack`."""
    *rows, width = x.shape
    packed = new(*rows, packed_width(width, bits), dtype=torch.uint8)
    scale, zero = (new(*rows, 1, dtype=torch.float16) for _ in range(2))
    stored = PackedTensor(packed, scale, zero, bits, width, hadamard, transform)
    _store([x], [stored], 0, read=False)
    return stored


def store_kv(
    keys: Tensor, values: Tensor, stored: tuple[PackedTensor, PackedTensor], at: int, read: bool
) -> tuple[Tensor, Tensor] | None:
    """Into slots at .. at + T - 1 of `stored`; with `read` what `dequantize_kv` makes of them."""
    made = _store([keys, values], stored, at, read)
    return (made[0], made[1]) if read else None


def _store(tensors: Sequence[Tensor], stored: Sequence[PackedTensor], at: int, read: bool) -> list[Tensor]:
    tensors = [rows_of(x.detach()) for x in tensors]
    first = tensors[0]
    batch, heads, tokens, width = first.shape
    inputs, made = (_Input * len(tensors))(), []
    for index, (x, memory) in enumerate(zip(tensors, stored, strict=True)):
        require("keys or values", x, first.shape, first.dtype, rows=True)
        slots = memory.packed.shape[2]
        if at < 0 or at + tokens > slots:
            raise QuotaError(f"the cpu backend cannot store {tokens} tokens from slot {at} on in a cache of {slots}")
        to = _Packed.of(memory, batch, heads, slots, width)
        if read:
            made.append(new(*first.shape, dtype=first.dtype))
        inputs[index] = _Input(x.data_ptr(), *x.stride()[:3], to, at, made[-1].data_ptr() if read else None)
    kind = typed("keys or values", first, first.shape, rows=True)[1]
    run(
        "quota_kv4_store",
        *(kind, batch, heads, tokens, width, inputs, len(tensors)),
        refusal=OUT_OF_RANGE,
        work="keys or values",
    )
    return made


def dequantize_kv(stored: PackedTensor, dtype: torch.dtype) -> Tensor:
    """[B, G, T, D] in `dtype`, rotated and transformed back."""
    batch, heads, tokens, _ = stored.packed.shape
    x = new(batch, heads, tokens, stored.width, dtype=dtype)
    packed = _Packed.of(stored, *x.shape)
    run("quota_kv4_dequantize", byref(packed), *x.shape, *typed("outputs", x, x.shape), work="keys or values")
    return x


def decode_attention(
    query: Tensor,
    keys: PackedTensor,
    values: PackedTensor,
    valid: Tensor | None,
    scaling: float,
    tokens: int | None = None,
    added: Tensor | None = None,
) -> Tensor:
    """One query a sequence over the packed cache: [B, H, 1, D] -> [B, H, 1, D]; zeros where nothing is valid.

    `added` float32 [B, H, T] is added to the logits, behind `scaling`.
    """
    batch, heads, _, width = query.shape
    _, groups, slots, _ = keys.packed.shape
    tokens = slots if tokens is None else tokens
    if not 0 <= tokens <= slots:
        raise QuotaError(f"the cpu backend cannot read {tokens} tokens in a cache of {slots}")
    shared = heads // max(1, groups)
    query = rows_of(query.detach())
    valid = None if valid is None else valid.contiguous()
    added = None if added is None else added.detach().contiguous()
    # In the order that the model reads it in: one token's heads behind one another.
    out = new(batch, 1, heads, width, dtype=query.dtype)
    stored = [_Packed.of(part, batch, groups, slots, width) for part in (keys, values)]
    run(
        "quota_kv4_decode",
        *typed("queries", query, (batch, groups * shared, 1, width), rows=True),
        *(batch, groups, shared, width, tokens, *query.stride()[:2]),
        *map(byref, stored),
        None if valid is None else address("valid", valid, (batch, tokens), torch.bool),
        None if added is None else address("added logits", added, (batch, heads, tokens), torch.float32),
        *(scaling, out.data_ptr()),
        work=f"the attention weights of {tokens} tokens",
    )
    return out.transpose(1, 2)
