"""What the scores are made of, on the CPU: prefill attention with its column sums, and the activations' errors.

In bfloat16, on a processor with AMX, attention is one kernel. Otherwise its two matrix products are torch's, and what
stands between them is one pass: mask, softmax, and the sums of what each token receives. Either way the sums cost next
to nothing, and a sample's result depends neither on the rest of its batch nor on the number of threads.
"""

from __future__ import annotations

from ctypes import c_float, c_int, c_int64
from dataclasses import dataclass

import torch
from torch import Tensor

from quota.ops.cpu.library import ISAS, integers, isa, library, machine, pointers, rows_of, typed
from quota.ops.reference import attention as reference_attention

# Logits held at once, in numbers.
_LOGITS = 1 << 22
# Queries that go into one matrix product: enough to pay for its preparation, which is more in bfloat16, and few enough
# to skip most of what comes later than they do.
_QUERIES = {torch.float32: 256, torch.bfloat16: 1024}
# Rows whose sums are added up one after the other (PREFILL_BAND of src/kv.h): fixed, whatever the threads.
_BAND = 64
_LARGEST_GROUP = 256


def attention(
    query: Tensor, key: Tensor, value: Tensor, rows: Tensor, visible: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """Causal attention and its column sums, as `quota.ops.reference.attention.attention`."""
    batch, _, queries, _ = query.shape
    query, key, value = (rows_of(x.detach()) for x in (query, key, value))
    output = torch.zeros_like(query)
    sums = torch.zeros(batch, rows.shape[1], key.shape[2])
    for sample in range(batch):
        # Padding stands in front. Cut off, it cannot change a bit of what the others do.
        first = visible[sample].numpy().tobytes().find(1)
        own = max(0, first - (key.shape[2] - queries))
        if first < 0 or own == queries:
            continue
        part = _Sample(
            query[sample, :, own:],
            key[sample, :, first:],
            value[sample, :, first:],
            rows[sample, :, own:].contiguous(),
            visible[sample, first:].contiguous(),
            scaling,
            output[sample, :, own:],
        )
        one_kernel = query.dtype == torch.bfloat16 and query.shape[3] % 32 == 0 and ISAS[isa()] == "amx"
        sums[sample, :, first:] = _with_amx(part) if one_kernel else _with_torch(part)
    return output, sums


def activation_error(x: Tensor, bits: int, group: int, hadamard: int) -> Tensor:
    """||Q(x H) - x H||_2 of each row of x [M, K], as `quota.ops.reference.attention.activation_error`."""
    if bits == 16 or max(group, hadamard) > _LARGEST_GROUP:
        return reference_attention.activation_error(x, bits, group, hadamard)
    x = rows_of(x.detach())
    errors = torch.empty(len(x))
    library().quota_activation_error(
        *(*machine(), *typed(x)),
        *integers(*x.shape, x.stride(0), hadamard, group),
        *(c_int(bits), *pointers(errors)),
    )
    return errors


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
    output: Tensor
    """[H, T, D], to be written."""


def _with_amx(part: _Sample) -> Tensor:
    """Write the output and return the sums [R, S]."""
    heads, queries, width = part.query.shape
    groups, length = part.key.shape[:2]
    tensors = part.query, part.key, part.value, part.output
    strides = [stride for tensor in tensors for stride in tensor.stride()[:2]]
    given = torch.zeros(heads, -(-queries // _BAND), len(part.rows), length)
    tiles = torch.empty(2 * groups * width * (-(-length // 32) * 32), dtype=torch.bfloat16)
    failed = library().quota_attention_amx(
        *(c_int(torch.get_num_threads()), *pointers(*tensors), (c_int64 * len(strides))(*strides)),
        *integers(heads, groups, queries, length, width),
        *pointers(part.visible, part.rows),
        *(*integers(len(part.rows)), c_float(part.scaling)),
        *pointers(given, tiles),
    )
    _check(failed, length)
    return given.sum(dim=(0, 1)) / heads


def _with_torch(part: _Sample) -> Tensor:
    """Write the output and return the sums [R, S]."""
    heads, queries, width = part.query.shape
    groups, length = part.key.shape[:2]
    shared = heads // groups
    # Half precision could not hold logits that are not scaled yet.
    dtype = torch.float32 if part.query.dtype == torch.float16 else part.query.dtype
    query, value, transposed = part.query.to(dtype), part.value.to(dtype), part.key.to(dtype).transpose(1, 2)
    sums = torch.zeros(len(part.rows), length)
    for start in range(0, queries, _QUERIES[dtype]):
        stop = min(start + _QUERIES[dtype], queries)
        # Later keys than the last query's own are seen by none of these.
        reach = length - queries + stop
        together = max(1, _LOGITS // (shared * (stop - start) * reach))
        for group in range(0, groups, together):
            those = slice(group, group + together)
            chunk = query[group * shared : (group + together) * shared, start:stop]
            weights = chunk.reshape(-1, shared * (stop - start), width) @ transposed[those, :, :reach]
            given = _softmax(weights.view(*chunk.shape[:2], reach), part.rows[:, start:], part.visible, part.scaling)
            sums[:, :reach] += given / heads
            mixed = (weights @ value[those, :reach]).view(chunk.shape)
            part.output[group * shared : (group + together) * shared, start:stop] = mixed
    return sums


def _softmax(logits: Tensor, rows: Tensor, visible: Tensor, scaling: float) -> Tensor:
    """Causal softmax of [H, T, S] in place; what the rows of [R, T or more] give to each key, summed: [R, S]."""
    heads, queries, length = logits.shape
    given = torch.empty(heads, -(-queries // _BAND), len(rows), length)
    failed = library().quota_softmax_sums(
        *(*machine(), *typed(logits)),
        *integers(heads, queries, length, length - queries),
        *pointers(visible, rows),
        *integers(len(rows), rows.stride(0)),
        *(c_float(scaling), *integers(_BAND), *pointers(given)),
    )
    _check(failed, length)
    return given.sum(dim=(0, 1))


def _check(failed: int, length: int) -> None:
    if failed:
        raise MemoryError(f"no memory for the attention weights of {length} tokens")
