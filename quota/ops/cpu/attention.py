"""Prefill attention with its column sums on the CPU.

In bfloat16, on a processor that multiplies it (AMX or AVX512_BF16), attention is one kernel. Otherwise its two matrix
products are torch's, and what stands between them is one pass: mask, softmax, and the sums of what each token receives.
Either way the sums cost next to nothing, and a sample's result depends neither on the rest of its batch nor on the
number of threads.
"""

from __future__ import annotations

from ctypes import c_int64
from dataclasses import dataclass

import torch
from torch import Tensor

from quota.ops.cpu.library import FLOATS, address, isa, library, new, require, rows_of, run, typed

# Logits held at once, in numbers.
_LOGITS = 1 << 22
# Queries that go into one matrix product: enough to pay for its preparation, which is more in bfloat16, and few enough
# to skip most of what comes later than they do.
_QUERIES = {torch.float32: 256, torch.bfloat16: 1024}
# Rows whose sums are added up one after the other (PREFILL_BAND of src/kv.h): fixed, whatever the threads.
_BAND = 64


def leads_attention(dtype: torch.dtype) -> bool:
    """Whether attention in this type is one kernel, which is faster than torch's own."""
    return dtype == torch.bfloat16 and bool(library().quota_has_bf16(isa()))


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor,
    visible: Tensor,
    scaling: float,
    causal: bool = True,
) -> tuple[Tensor, Tensor]:
    """Attention and its column sums, as `quota.ops.reference.attention.attention` with visible [B, S]."""
    (batch, heads, queries, width), (groups, length) = query.shape, key.shape[1:3]
    query, key, value = (rows_of(x.detach()) for x in (query, key, value))
    # Each group of heads shares keys, and the queries are the last tokens.
    fitting = batch, heads - heads % max(1, groups), min(queries, length) if causal else queries, width
    require("queries", query, fitting, *FLOATS, rows=True)
    require("keys", key, (batch, groups, length, width), *FLOATS, rows=True)
    require("values", value, (batch, groups, length, width), *FLOATS, rows=True)
    require("rows", rows := rows.contiguous(), (batch, rows.shape[1], queries), torch.bool)
    require("visible", visible := visible.contiguous(), (batch, length), torch.bool)
    output = torch.zeros_like(query)
    sums = new(batch, rows.shape[1], length).zero_()
    if not query.numel():
        return output, sums
    one_kernel = leads_attention(query.dtype) and key.dtype == value.dtype == query.dtype
    for sample in range(batch):
        # Padding stands in front. Cut off, it cannot change a bit of what the others do.
        first = visible[sample].numpy().tobytes().find(1)
        own = max(0, first - (length - queries)) if causal else 0
        if first < 0 or own == queries:
            continue
        part = _Sample(
            query[sample, :, own:],
            key[sample, :, first:],
            value[sample, :, first:],
            rows[sample, :, own:].contiguous(),
            visible[sample, first:].contiguous(),
            scaling,
            causal,
            output[sample, :, own:],
        )
        sums[sample, :, first:] = _with_kernel(part) if one_kernel else _with_torch(part)
    return output, sums


@dataclass(frozen=True)
class _Sample:
    """One sample of a batch, without the padding in front of it."""

    query: Tensor
    """[H, T, D]"""
    key: Tensor
    """[G, S, D]"""
    value: Tensor
    """[G, S, D]"""
    rows: Tensor
    """[R, T] bool"""
    visible: Tensor
    """[S] bool"""
    scaling: float
    causal: bool
    output: Tensor
    """[H, T, D], to be written."""


def _with_kernel(part: _Sample) -> Tensor:
    """Write the output and return the sums [R, S]."""
    heads, queries, width = part.query.shape
    groups, length = part.key.shape[:2]
    tensors = {"queries": part.query, "keys": part.key, "values": part.value, "outputs": part.output}
    shapes = [(heads, queries, width), *[(groups, length, width)] * 2, (heads, queries, width)]
    strides = [stride for tensor in tensors.values() for stride in tensor.stride()[:2]]
    given = new(heads, -(-queries // _BAND), len(part.rows), length).zero_()
    tiles = new(2, groups, -(-length // 32) * 32, -(-width // 32) * 32, dtype=torch.bfloat16)
    run(
        "quota_attention",
        *(
            address(name, tensor, shape, torch.bfloat16, rows=True)
            for (name, tensor), shape in zip(tensors.items(), shapes, strict=True)
        ),
        (c_int64 * len(strides))(*strides),
        *(heads, groups, queries, length, width, int(part.causal)),
        address("visible", part.visible, (length,), torch.bool),
        address("rows", part.rows, (len(part.rows), queries), torch.bool),
        *(len(part.rows), part.scaling, given.data_ptr(), tiles.data_ptr()),
        work=f"the attention weights of {length} tokens",
    )
    return given.sum(dim=(0, 1)) / heads


def _with_torch(part: _Sample) -> Tensor:
    """Write the output and return the sums [R, S]."""
    heads, queries, width = part.query.shape
    groups, length = part.key.shape[:2]
    shared = heads // groups
    # Half precision could not hold logits that are not scaled yet.
    dtype = torch.float32 if part.query.dtype == torch.float16 else part.query.dtype
    query, value, transposed = part.query.to(dtype), part.value.to(dtype), part.key.to(dtype).transpose(1, 2)
    sums = new(len(part.rows), length).zero_()
    for start in range(0, queries, _QUERIES[dtype]):
        stop = min(start + _QUERIES[dtype], queries)
        # Later keys than the last query's own are seen by none of these.
        reach = length - queries + stop if part.causal else length
        together = max(1, _LOGITS // (shared * (stop - start) * reach))
        for group in range(0, groups, together):
            those = slice(group, group + together)
            chunk = query[group * shared : (group + together) * shared, start:stop]
            weights = chunk.reshape(-1, shared * (stop - start), width) @ transposed[those, :, :reach]
            logits = weights.view(*chunk.shape[:2], reach)
            given = _softmax(logits, part.rows[:, start:], part.visible, part.scaling, part.causal)
            sums[:, :reach] += given / heads
            mixed = (weights @ value[those, :reach]).view(chunk.shape)
            part.output[group * shared : (group + together) * shared, start:stop] = mixed
    return sums


def _softmax(logits: Tensor, rows: Tensor, visible: Tensor, scaling: float, causal: bool = True) -> Tensor:
    """Softmax of [H, T, S] in place; what the rows of [R, T or more] give to each key, summed: [R, S]."""
    heads, queries, length = logits.shape
    sets = rows.shape[0]
    given = new(heads, -(-queries // _BAND), sets, length)
    run(
        "quota_softmax_sums",
        *typed("logits", logits, (heads, queries, length)),
        *(heads, queries, length, length - queries if causal else length),
        address("visible", visible[:length], (length,), torch.bool),
        address("rows", rows[:, :queries], (sets, queries), torch.bool, rows=True),
        *(sets, rows.stride(0), scaling, _BAND, given.data_ptr()),
        work=f"the attention weights of {length} tokens",
    )
    return given.sum(dim=(0, 1))
