"""`quota bench ops`: the operators alone.

    linear             W4A4, rotation and activation quantisation included, against torch's bfloat16 linear
    decode_attention   one query over the packed 4-bit cache, against torch's SDPA in float32

A layer's weights are used once a token, so in a real model they come from memory. Here every turn takes another copy,
and the copies together are larger than the largest cache. (bfloat16 SDPA with one query is slower than float32 on CPUs,
and would be too easy a baseline.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from quota import ops
from quota.ops import machine
from quota.ops.interface import Backend, LinearSpec, LinearWeight, PackedTensor
from quota.ops.packing import pack_int32
from quota.progress import Steps, silent
from quota.quantization.linear import input_spec
from quota.scheme import QuantizationScheme
from quota_lab.bench.busy import Others
from quota_lab.bench.report import Report, Row
from quota_lab.bench.timing import interleaved

# (M, N, K): tokens, output and input channels. The last five are a tower's and a decoder's.
LINEAR = (
    (1, 2048, 2048),
    (1, 5504, 2048),
    (1, 4096, 4096),
    (1, 11008, 4096),
    (32, 4096, 4096),
    (256, 4096, 4096),
    (640, 4096, 4096),
    (256, 5504, 2048),
    (640, 5504, 2048),
    (577, 1024, 1024),
    (577, 4096, 1024),
    (577, 1024, 4096),
)
# (query heads, key-value heads, channels of a head, tokens in the cache).
ATTENTION = ((8, 4, 128, 1024), (32, 8, 128, 1024), (16, 16, 128, 1024), (8, 4, 128, 4096))

TURNS = 30
_SCHEME = QuantizationScheme()


def bench_operators(
    linear: Sequence[tuple[int, int, int]] = LINEAR,
    attention: Sequence[tuple[int, int, int, int]] = ATTENTION,
    turns: int = TURNS,
    cache: int | None = None,
    progress: Steps = silent,
) -> Report:
    """Time the backend that is forced, or else every one that runs here (the reference only if no other does).

    `cache` is how many bytes of weights each side goes through before it meets the same again; by default as much as
    the processor's largest cache holds, so that all sides together are at least twice that.
    """
    report, others = Report(), Others()
    backends = _backends()
    cache = machine.largest_cache() if cache is None else cache
    total = len(linear) + len(attention)
    for shape in linear:
        report.rows += linear_rows(backends, *shape, turns, cache)
        progress("operators", len(report.rows) // len(backends), total)
    for heads in attention:
        report.rows += attention_rows(backends, *heads, turns, cache)
        progress("operators", len(report.rows) // len(backends), total)
    report.others = others.share()
    return report


def linear_rows(backends: Sequence[Backend], m: int, n: int, k: int, turns: int, cache: int) -> list[Row]:
    """One row a backend for x [M, K] times a weight [N, K], bfloat16 in and out."""
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    weight = random_weight(n, k)
    dense = torch.randn(n, k).to(torch.bfloat16)
    copies = _copies(cache, dense.nbytes)
    calls: list[Callable[[int], Tensor]] = [partial(dense_linear, x, [dense.clone() for _ in range(copies)])]
    for backend in backends:
        copies = _copies(cache, weight.packed.nbytes)
        calls.append(partial(packed_linear, backend, x, [_copy(weight) for _ in range(copies)]))
    # A long first round, in which backends prepare their copies and page faults are over.
    baseline, *values = interleaved(calls, turns, warm_up=copies)
    shape = f"M={m} N={n} K={k} cold"
    return [
        Row("linear", shape, backend.name, value, "torch bf16", baseline)
        for backend, value in zip(backends, values, strict=True)
    ]


def attention_rows(
    backends: Sequence[Backend], heads: int, groups: int, width: int, tokens: int, turns: int, cache: int
) -> list[Row]:
    """One row a backend for one query a head over a cache of `tokens`."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, heads, 1, width, generator=generator)
    keys, values = (torch.randn(1, groups, tokens, width, generator=generator) for _ in range(2))
    copies = _copies(cache, 2 * keys.nbytes)
    dense = [(keys.clone(), values.clone()) for _ in range(copies)]
    calls: list[Callable[[int], Tensor]] = [partial(_sdpa, query, dense)]
    for backend in backends:
        block = _SCHEME.hadamard_for(width)
        stored = backend.quantize_kv(keys, 4, block), backend.quantize_kv(values, 4, 0)
        copies = _copies(cache, 2 * stored[0].packed.nbytes)
        calls.append(partial(packed_attention, backend, query, [tuple(map(copy_cache, stored)) for _ in range(copies)]))
    baseline, *seconds = interleaved(calls, turns, warm_up=copies)
    shape = f"H={heads} G={groups} D={width} T={tokens} cold"
    return [
        Row("decode_attention", shape, backend.name, value, "torch fp32 SDPA", baseline)
        for backend, value in zip(backends, seconds, strict=True)
    ]


def random_weight(rows: int, columns: int) -> LinearWeight:
    """A 4-bit layer of the default scheme."""
    group = _SCHEME.weight_group_for(columns)
    spec = LinearSpec(rows, 4, group, input_spec(_SCHEME, columns))
    packed = pack_int32(torch.randint(-8, 8, (rows, columns), dtype=torch.int8), 4)
    step = torch.randint(8, 17, (rows, columns // group), dtype=torch.uint8)
    return LinearWeight(spec, packed, step, torch.full((rows,), 0.001), None)


def _backends() -> list[Backend]:
    if ops.forced() is not None:
        return [ops.backend()]
    running = [ops.backend(name) for name in ops.order("cpu") if ops.why_not(name) is None]
    return [backend for backend in running if backend.name != "reference"] or running


def _copies(cache: int, nbytes: int) -> int:
    return 1 + cache // nbytes


def _copy(weight: LinearWeight) -> LinearWeight:
    return LinearWeight(weight.spec, weight.packed.clone(), weight.step.clone(), weight.scale.clone(), weight.bias)


def copy_cache(stored: PackedTensor) -> PackedTensor:
    """The same keys or values in memory of their own."""
    tensors = stored.packed.clone(), stored.scale.clone(), stored.zero.clone()
    return PackedTensor(*tensors, stored.bits, stored.width, stored.hadamard)


def dense_linear(x: Tensor, weights: list[Tensor], turn: int) -> Tensor:
    """x [M, K] -> [M, N] by torch, with the copy [N, K] whose turn it is."""
    return functional.linear(x, weights[turn % len(weights)])


def packed_linear(backend: Backend, x: Tensor, weights: list[LinearWeight], turn: int) -> Tensor:
    """The same by a backend."""
    [y] = backend.linear(x, [weights[turn % len(weights)]])
    return y


def _sdpa(query: Tensor, cache: list[tuple[Tensor, Tensor]], turn: int) -> Tensor:
    keys, values = cache[turn % len(cache)]
    # The queries that share a head stand as rows of one: faster than repeating keys and values for them.
    grouped = query.view(keys.shape[0], keys.shape[1], -1, keys.shape[3])
    return functional.scaled_dot_product_attention(grouped, keys, values).view_as(query)


def packed_attention(backend: Backend, query: Tensor, cache: list[tuple[PackedTensor, ...]], turn: int) -> Tensor:
    """One query a head [1, H, 1, D] over the packed keys and values whose turn it is -> as query."""
    keys, values = cache[turn % len(cache)]
    return backend.decode_attention(query, keys, values, None, query.shape[-1] ** -0.5)
