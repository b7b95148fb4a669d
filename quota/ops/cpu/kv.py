"""KV4 and attention on the CPU: the C++ kernels of `src/kv*` and `src/attention*` behind the backend's interface.

What is stored is bit for bit what the reference stores (where nothing is rotated: a rotation adds in another order).
Decoding reads the packed integers, unpacked once for all query heads that share a key head. A prefill in bfloat16 on a
processor with AMX is one kernel. Any other leaves its two matrix products to torch and does what stands between them in
one pass: scale, mask, softmax, and the sums of what each token receives.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.cpu.library import ISAS, isa, library
from quota.ops.interface import CacheSpec, PackedTensor
from quota.quantization.kv_integer import OUT_OF_RANGE

LARGEST_WIDTH = 1024
"""Channels of a head; the kernels keep one in a buffer of this size."""

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

# Logits held at once, in numbers.
_LOGITS = 1 << 22
# Queries that go into one matrix product: enough to pay for its preparation, which is more in bfloat16, and few enough
# to skip most of what comes later than they do.
_QUERIES = {torch.float32: 256, torch.bfloat16: 1024}
# Rows whose sums are added up one after the other; fixed, so that the order never depends on the threads.
_BAND = 64


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
    """[B, G, T, D] -> packed; errors as `quota.quantization.kv_integer.quantize_kv` and `pack`."""
    batch, heads, tokens, width = x.shape
    if width % 8:
        raise QuotaError(f"a head of {width} channels cannot be packed: not a multiple of 8; use kv_bits=16")
    x = _rows(x.detach())
    packed = torch.empty(batch, heads, tokens, width // 2, dtype=torch.uint8)
    scale, zero = torch.empty(2, batch, heads, tokens, 1, dtype=torch.float16)
    failed = library().quota_kv4_quantize(
        *(c_int(isa()), c_void_p(x.data_ptr()), c_int(_TYPES[x.dtype])),
        *_integers(batch, heads, tokens, width, *x.stride()[:3], hadamard),
        *_pointers(packed, scale, zero),
    )
    if failed:
        raise QuotaError(OUT_OF_RANGE)
    return PackedTensor(packed, scale, zero, bits, width, hadamard)


def dequantize_kv(stored: PackedTensor, dtype: torch.dtype) -> Tensor:
    """[B, G, T, D] in `dtype`, rotated back."""
    batch, heads, tokens, _ = stored.packed.shape
    x = torch.empty(batch, heads, tokens, stored.width, dtype=dtype)
    library().quota_kv4_dequantize(
        *(c_int(isa()), ctypes.byref(_Packed.of(stored))),
        *_integers(batch, heads, tokens, stored.width),
        *(c_void_p(x.data_ptr()), c_int(_TYPES[dtype])),
    )
    return x


def decode_attention(
    query: Tensor, keys: PackedTensor, values: PackedTensor, valid: Tensor | None, scaling: float
) -> Tensor:
    """One query a sequence over the packed cache: [B, H, 1, D] -> [B, H, 1, D]; zeros where nothing is valid."""
    batch, heads, _, width = query.shape
    groups, tokens = keys.packed.shape[1:3]
    query = _rows(query.detach())
    valid = None if valid is None else valid.contiguous()
    # In the order that the model reads it in: one token's heads behind one another.
    out = torch.empty(batch, 1, heads, width, dtype=query.dtype)
    failed = library().quota_kv4_decode(
        *(c_int(isa()), c_void_p(query.data_ptr()), c_int(_TYPES[query.dtype])),
        *_integers(batch, groups, heads // groups, width, tokens, *query.stride()[:2]),
        *(ctypes.byref(_Packed.of(keys)), ctypes.byref(_Packed.of(values))),
        *(c_void_p(None if valid is None else valid.data_ptr()), c_float(scaling), c_void_p(out.data_ptr())),
    )
    if failed:
        raise MemoryError(f"no memory for the attention weights of {tokens} tokens")
    return out.transpose(1, 2)


def attention(
    query: Tensor, key: Tensor, value: Tensor, rows: Tensor, visible: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """Causal attention and its column sums, as `quota.ops.reference_attention.attention`."""
    batch, _, queries, _ = query.shape
    query, key, value = (_rows(x.detach()) for x in (query, key, value))
    output = torch.zeros_like(query)
    sums = torch.zeros(batch, rows.shape[1], key.shape[2])
    for sample in range(batch):
        # Padding stands in front. Cut off, it cannot change a bit of what the others do.
        seen = visible[sample].nonzero()
        first = int(seen[0]) if len(seen) else key.shape[2]
        own = max(0, first - (key.shape[2] - queries))
        if own < queries:
            part = slice(own, None)
            _attend(
                query[sample, :, part],
                key[sample, :, first:],
                value[sample, :, first:],
                rows[sample, :, part].contiguous(),
                visible[sample, first:].contiguous(),
                scaling,
                output[sample, :, part],
                sums[sample, :, first:],
            )
    return output, sums


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor,
    visible: Tensor,
    scaling: float,
    output: Tensor,
    sums: Tensor,
) -> None:
    """One sample: query [H, T, D], key and value [G, S, D], rows [R, T], visible [S] -> output, sums [R, S]."""
    heads, queries, width = query.shape
    if query.dtype == torch.bfloat16 and width % 32 == 0 and ISAS[isa()] == "amx":
        _attend_amx(query, key, value, rows, visible, scaling, output, sums)
        return
    groups, length = key.shape[:2]
    shared = heads // groups
    # Half precision could not hold logits that are not scaled yet.
    dtype = torch.float32 if query.dtype == torch.float16 else query.dtype
    query, key, value = query.to(dtype), key.to(dtype).transpose(1, 2), value.to(dtype)
    for start in range(0, queries, _QUERIES[dtype]):
        stop = min(start + _QUERIES[dtype], queries)
        # Later keys than the last query's own are seen by none of these.
        reach = length - queries + stop
        together = max(1, _LOGITS // (shared * (stop - start) * reach))
        for group in range(0, groups, together):
            part = slice(group, group + together)
            own = slice(group * shared, (group + together) * shared)
            chunk = query[own, start:stop]
            weights = chunk.reshape(-1, shared * (stop - start), width) @ key[part, :, :reach]
            given = _softmax(weights.view(*chunk.shape[:2], reach), rows[:, start:], visible, scaling)
            sums[:, :reach] += given / heads
            output[own, start:stop] = (weights @ value[part, :reach]).view(chunk.shape)


def _attend_amx(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor,
    visible: Tensor,
    scaling: float,
    output: Tensor,
    sums: Tensor,
) -> None:
    """`_attend` in bfloat16, D a multiple of 32, where the products and what stands between them are one kernel."""
    heads, queries, width = query.shape
    groups, length = key.shape[:2]
    tensors = query, key, value, output
    strides = [stride for tensor in tensors for stride in tensor.stride()[:2]]
    given = torch.zeros(heads, -(-queries // _BAND), rows.shape[0], length)
    tiles = torch.empty(2 * groups * width * (-(-length // 32) * 32), dtype=torch.bfloat16)
    failed = library().quota_attention_amx(
        *_pointers(*tensors),
        (c_int64 * len(strides))(*strides),
        *_integers(heads, groups, queries, length, width),
        *_pointers(visible, rows),
        *(c_int64(rows.shape[0]), c_float(scaling)),
        *_pointers(given, tiles),
    )
    if failed:
        raise MemoryError(f"no memory for the attention weights of {length} tokens")
    sums += given.sum(dim=(0, 1)) / heads


def _softmax(logits: Tensor, rows: Tensor, visible: Tensor, scaling: float) -> Tensor:
    """Causal softmax of [H, T, S] in place; what the rows of [R, T or more] give to each key, summed: [R, S]."""
    heads, queries, length = logits.shape
    given = torch.empty(heads, -(-queries // _BAND), rows.shape[0], length)
    failed = library().quota_softmax_sums(
        *(c_int(isa()), c_void_p(logits.data_ptr()), c_int(_TYPES[logits.dtype])),
        *_integers(heads, queries, length, length - queries),
        *_pointers(visible, rows),
        *_integers(rows.shape[0], rows.stride(0)),
        *(c_float(scaling), c_int64(_BAND), c_void_p(given.data_ptr())),
    )
    if failed:
        raise MemoryError(f"no memory for the attention weights of {length} tokens")
    return given.sum(dim=(0, 1))


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _integers(*numbers: int) -> tuple[c_int64, ...]:
    return tuple(map(c_int64, numbers))


def _pointers(*tensors: Tensor) -> tuple[c_void_p, ...]:
    return tuple(c_void_p(tensor.data_ptr()) for tensor in tensors)
