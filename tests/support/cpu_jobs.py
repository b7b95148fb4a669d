"""Every job of the C++ kernels with tensors that fit, by the names of its operands; what tests spoil one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from quota.ops.cpu import attention, cache, linear, tokens
from quota.ops.interface import LinearSpec, LinearWeight, PackedTensor
from support.operands import make_weight

M, N, K, B, H, G, T, S, D, R, V = 3, 10, 128, 2, 4, 2, 5, 9, 32, 2, 7
FLOATS = {torch.float32, torch.bfloat16, torch.float16}
INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
EVERY = {torch.bool, torch.float64} | FLOATS | INTEGERS


CACHE_JOBS = ("quantize_kv", "dequantize_kv", "decode_attention")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


WEIGHT = make_weight(N, K, hadamard=64)
INPUTS = WEIGHT.spec.inputs


def stored() -> PackedTensor:
    return cache.quantize_kv(random(B, G, S, D), 4, 32)


def run_linear(
    inputs: Tensor,
    packed: Tensor,
    step: Tensor,
    scale: Tensor,
    bias: Tensor,
    rows: int = N,
    weight_group: int = 64,
    **sizes: int,
) -> Tensor:
    spec = LinearSpec(rows, 4, weight_group, replace(INPUTS, **sizes))
    [y] = linear.linear(inputs, [LinearWeight(spec, packed, step, scale, bias)])
    return y


def run_prepared(prepared: Tensor) -> Tensor:
    [y] = linear.linear(random(M, K), [replace(WEIGHT, prepared={"cpu": linear._Known(prepared)})])
    return y


def run_sums(values: Tensor, packed: Tensor, step: Tensor, **sizes: int) -> Tensor:
    spec = replace(WEIGHT.spec, **sizes)
    return linear.sums(values, replace(WEIGHT, spec=spec, packed=packed, step=step, prepared={}))


def run_dequantize(packed: Tensor, scale: Tensor, zero: Tensor, **sizes: int) -> Tensor:
    return cache.dequantize_kv(replace(stored(), packed=packed, scale=scale, zero=zero, **sizes), torch.float32)


def run_decode(
    queries: Tensor, packed: Tensor, scale: Tensor, zero: Tensor, valid: Tensor, added: Tensor, **sizes: int
) -> Tensor:
    values = replace(stored(), packed=packed, scale=scale, zero=zero, **sizes)
    return cache.decode_attention(queries, stored(), values, valid, 0.1, added=added)


def run_store(keys: Tensor, values: Tensor, packed: Tensor, scale: Tensor, zero: Tensor, **sizes: int) -> Tensor:
    into = replace(stored(), packed=packed, scale=scale, zero=zero, **sizes)
    read = cache.store_kv(keys, values, (into, stored()), 0, True)
    assert read is not None
    return read[0]


def run_attention(queries: Tensor, keys: Tensor, values: Tensor, rows: Tensor, visible: Tensor) -> Tensor:
    return attention.attention(queries, keys, values, rows, visible, 0.1)[0]


def run_softmax(logits: Tensor, rows: Tensor, visible: Tensor) -> Tensor:
    return attention._softmax(logits, rows, visible, 0.1)


def run_information(hidden: Tensor, valid: Tensor, counts: Tensor) -> Tensor:
    return tokens.information(hidden, valid, counts, 0.01)


def run_cut(score: Tensor, valid: Tensor, places: Tensor, others: Tensor, counts: tuple[int, ...] = (3, 3)) -> Tensor:
    return tokens.cut(score, counts, valid, places, others).slots


def cells(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


# Job -> its call, and tensor -> one that is right, and the types that are.
JOBS: dict[str, tuple[Callable[..., Tensor], dict[str, tuple[Tensor, set[torch.dtype]]]]] = {
    "linear": (
        run_linear,
        {
            "inputs": (random(M, K), FLOATS),
            "packed": (WEIGHT.packed, {torch.int32}),
            "step": (WEIGHT.step, {torch.uint8}),
            "scale": (WEIGHT.scale, {torch.float32}),
            "bias": (random(N), {torch.float32}),
        },
    ),
    "prepared": (run_prepared, {"prepared": (torch.ones(1, 2, 16, dtype=torch.uint8), {torch.uint8})}),
    "sums": (
        run_sums,
        {
            "values": (torch.ones(M, K, dtype=torch.int8), {torch.int8}),
            "packed": (WEIGHT.packed, {torch.int32}),
            "step": (WEIGHT.step, {torch.uint8}),
        },
    ),
    "quantize": (lambda inputs: linear.quantize(inputs, INPUTS)[1], {"inputs": (random(M, K), FLOATS)}),
    "quantize_kv": (lambda x: cache.quantize_kv(x, 4, 32).packed, {"x": (random(B, G, S, D), FLOATS)}),
    "store_kv": (
        run_store,
        {
            "keys": (random(B, G, S, D), {torch.float32}),
            "values": (random(B, G, S, D, seed=1), {torch.float32}),
            "packed": (torch.ones(B, G, S, D // 2, dtype=torch.uint8), {torch.uint8}),
            "scale": (torch.ones(B, G, S, 1, dtype=torch.float16), {torch.float16}),
            "zero": (torch.ones(B, G, S, 1, dtype=torch.float16), {torch.float16}),
        },
    ),
    "dequantize_kv": (
        run_dequantize,
        {
            "packed": (torch.ones(B, G, S, D // 2, dtype=torch.uint8), {torch.uint8}),
            "scale": (torch.ones(B, G, S, 1, dtype=torch.float16), {torch.float16}),
            "zero": (torch.ones(B, G, S, 1, dtype=torch.float16), {torch.float16}),
        },
    ),
    "decode_attention": (
        run_decode,
        {
            "queries": (random(B, H, 1, D), FLOATS),
            "packed": (torch.ones(B, G, S, D // 2, dtype=torch.uint8), {torch.uint8}),
            "scale": (torch.ones(B, G, S, 1, dtype=torch.float16), {torch.float16}),
            "zero": (torch.ones(B, G, S, 1, dtype=torch.float16), {torch.float16}),
            "valid": (cells(B, S), {torch.bool}),
            "added": (random(B, H, S), {torch.float32}),
        },
    ),
    "attention": (
        run_attention,
        {
            "queries": (random(B, H, T, D), FLOATS),
            "keys": (random(B, G, S, D), FLOATS),
            "values": (random(B, G, S, D), FLOATS),
            "rows": (cells(B, R, T), {torch.bool}),
            "visible": (cells(B, S), {torch.bool}),
        },
    ),
    "softmax": (
        run_softmax,
        {
            "logits": (random(H, T, S), FLOATS),
            "rows": (cells(R, T), {torch.bool}),
            "visible": (cells(S), {torch.bool}),
        },
    ),
    "activation_error": (
        lambda x: tokens.activation_error(x, INPUTS),
        {"x": (random(M, K), FLOATS)},
    ),
    "information": (
        run_information,
        {
            "hidden": (random(B, V, D), EVERY),
            "valid": (cells(B, V), {torch.bool}),
            "counts": (torch.tensor([3, V]), {torch.int64}),
        },
    ),
    "cut": (
        run_cut,
        {
            "score": (random(R, V), EVERY),
            "valid": (cells(R, V), {torch.bool}),
            "places": (torch.arange(R * V).view(R, V), {torch.int64}),
            "others": (~cells(R, V), {torch.bool}),
        },
    ),
}
OPERANDS = [(job, name) for job, (_, tensors) in JOBS.items() for name in tensors]
operands = pytest.mark.parametrize(("job", "name"), OPERANDS, ids=lambda part: part)

# Sizes that the tensor itself sets, or that may be larger.
FREE = {
    *(("linear", "inputs", 0), ("sums", "values", 0), ("quantize", "inputs", 0), ("activation_error", "x", 0)),
    *(("quantize_kv", "x", dim) for dim in range(4)),
    *(("decode_attention", "queries", 1), ("attention", "queries", 1), ("attention", "rows", 1)),
    *(("softmax", "logits", dim) for dim in range(3)),
    *(("softmax", "rows", 0), ("softmax", "rows", 1), ("softmax", "visible", 0)),
    *(("information", "hidden", 2), ("cut", "others", 0), ("cut", "others", 1)),
}


def call(job: str, name: str | None = None, other: Tensor | None = None, **sizes: Any) -> Tensor:
    """The job with one of its tensors replaced."""
    run, tensors = JOBS[job]
    given = {each: tensor.clone() for each, (tensor, _) in tensors.items()}
    return run(**given | ({} if name is None else {name: other}), **sizes)
