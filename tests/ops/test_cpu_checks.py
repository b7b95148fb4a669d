"""No tensor reaches a C++ kernel that is not what the kernel will read: another type, shape or order is one line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.instruction_sets import every_isa, needs_library, using
from support.operands import make_weight
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.cpu import attention, cache, library, linear, tokens
from quota.ops.interface import LinearSpec, LinearWeight, PackedTensor

pytestmark = needs_library

M, N, K, B, H, G, T, S, D, R, V = 3, 10, 128, 2, 4, 2, 5, 9, 32, 2, 7
FLOATS = {torch.float32, torch.bfloat16, torch.float16}
INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
EVERY = {torch.bool, torch.float64} | FLOATS | INTEGERS


CACHE_JOBS = ("quantize_kv", "dequantize_kv", "decode_attention")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


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
    [y] = linear.linear(random(M, K), [replace(WEIGHT, prepared={"cpu": prepared})])
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
    "peaks": (
        tokens.peaks,
        {
            "hidden": (random(B, V, D), EVERY),
            "weight": (torch.ones(B, V), EVERY),
            "valid": (cells(B, V), {torch.bool}),
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
    *(("peaks", "hidden", 2), ("cut", "others", 0), ("cut", "others", 1)),
}


def call(job: str, name: str | None = None, other: Tensor | None = None, **sizes: Any) -> Tensor:
    """The job with one of its tensors replaced."""
    run, tensors = JOBS[job]
    given = {each: tensor.clone() for each, (tensor, _) in tensors.items()}
    return run(**given | ({} if name is None else {name: other}), **sizes)


@pytest.mark.parametrize("job", JOBS)
def test_what_is_right_runs(job: str) -> None:
    assert call(job).numel()


@operands
def test_another_type_is_refused(job: str, name: str) -> None:
    tensor, accepted = JOBS[job][1][name]
    for dtype in EVERY - accepted:
        with pytest.raises(QuotaError, match=r"the cpu backend takes .* convert what it was given: torch") as raised:
            call(job, name, tensor.to(dtype))
        assert len(str(raised.value)) <= 300
    for dtype in accepted:
        assert call(job, name, tensor.to(dtype)).numel()


@operands
def test_another_shape_is_refused(job: str, name: str) -> None:
    tensor, _ = JOBS[job][1][name]
    for dim, size in enumerate(tensor.shape):
        for other in (torch.cat((tensor, tensor), dim), tensor.narrow(dim, 0, size - 1).contiguous()):
            free = (job, name, dim) in FREE
            expected = contextlib.suppress(QuotaError) if free else pytest.raises((QuotaError, RuntimeError))
            with expected:
                call(job, name, other)


@operands
def test_the_order_in_memory_changes_no_bit(job: str, name: str) -> None:
    tensor, _ = JOBS[job][1][name]
    expected = call(job)
    for dim in range(tensor.ndim):
        apart = torch.stack((tensor, tensor), dim + 1).select(dim + 1, 0)
        try:
            assert torch.equal(call(job, name, apart), expected)
        except QuotaError as error:
            assert "contiguous" in str(error)


@pytest.mark.parametrize(
    ("job", "sizes"),
    [
        ("linear", {"rows": N + 1}),
        ("linear", {"columns": 2 * K}),
        ("linear", {"columns": 0}),
        ("linear", {"weight_group": 24}),
        ("linear", {"weight_group": 32}),
        ("linear", {"weight_group": 0}),
        ("linear", {"weight_group": -64}),
        ("linear", {"group": 0}),
        ("linear", {"group": 24}),
        ("linear", {"group": 256}),
        ("linear", {"group": -64}),
        ("linear", {"hadamard": 48}),
        ("linear", {"hadamard": 512}),
        ("linear", {"hadamard": -1}),
        ("linear", {"bits": 16}),
        ("sums", {"rows": N + 1}),
        ("sums", {"group": 128}),
        ("store_kv", {"hadamard": 64}),
        ("store_kv", {"bits": 8}),
        ("dequantize_kv", {"width": 2 * D}),
        ("dequantize_kv", {"width": D - 8}),
        ("dequantize_kv", {"hadamard": 64}),
        ("dequantize_kv", {"hadamard": 24}),
        ("dequantize_kv", {"bits": 8}),
        ("decode_attention", {"hadamard": 64}),
        ("decode_attention", {"bits": 2}),
        ("cut", {"counts": (3,)}),
        ("cut", {"counts": (3, 3, 3)}),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused(job: str, sizes: dict[str, Any]) -> None:
    with pytest.raises((QuotaError, RuntimeError)):
        call(job, **sizes)


def test_a_place_outside_the_batch_is_refused() -> None:
    places = JOBS["cut"][1]["places"][0]
    for wrong in (-1, R * V, 2**62):
        with pytest.raises(QuotaError, match="not made for such sizes of a choice among"):
            call("cut", "places", places.index_fill(1, torch.tensor(3), wrong))


@pytest.mark.parametrize(
    "packed",
    [
        pytest.param(WEIGHT.packed, id="of 4 bits"),
        pytest.param(torch.ones(N - 1, K // 4, dtype=torch.int32), id="a row less"),
        pytest.param(torch.ones(N, K, dtype=torch.int8), id="bytes"),
        pytest.param(torch.ones(K // 4, N, dtype=torch.int32).T, id="other order"),
    ],
)
def test_what_is_not_packed_in_8_bits_is_refused(packed: Tensor) -> None:
    weight = replace(make_weight(N, K, 8), packed=packed)
    with pytest.raises(QuotaError, match="packed weights"):
        linear.linear(random(M, K), [weight])


def test_heads_that_do_not_share_keys_evenly_are_refused() -> None:
    with pytest.raises(QuotaError, match="takes queries"):
        call("attention", "queries", random(B, 3, T, D))
    with pytest.raises(QuotaError, match="takes queries"):
        call("decode_attention", "queries", random(B, 3, 1, D))


def test_tokens_that_a_cache_does_not_have_are_refused() -> None:
    for wrong in (-1, S + 1):
        with pytest.raises(QuotaError, match=f"in a cache of {S}"):
            cache.decode_attention(random(B, H, 1, D), stored(), stored(), None, 0.1, wrong)


def test_a_cache_that_is_changed_in_place_is_looked_at_again() -> None:
    held = stored()
    expected = cache.dequantize_kv(held, torch.float32)
    held.packed.set_(held.packed.clone())
    assert torch.equal(cache.dequantize_kv(held, torch.float32), expected)


def test_more_queries_than_tokens_are_refused() -> None:
    with pytest.raises(QuotaError):
        run_attention(random(B, H, S + 1, D), random(B, G, S, D), random(B, G, S, D), cells(B, R, S + 1), cells(B, S))


def test_a_tensor_elsewhere_is_refused() -> None:
    with pytest.raises(QuotaError, match="on meta"):
        library.address("inputs", random(2, 8).to("meta"), (2, 8), torch.float32)


@every_isa
def test_an_instruction_set_that_is_not_there_is_refused_by_the_kernels_too(isa: str, monkeypatch) -> None:
    with using(isa):
        for wrong in (-1, library.ISAS.index(library.best_isa()) + 1):
            monkeypatch.setattr(library, "isa", lambda wrong=wrong: wrong)
            for job in (
                "linear",
                "sums",
                "quantize",
                "quantize_kv",
                "store_kv",
                "dequantize_kv",
                "decode_attention",
                "peaks",
                "cut",
            ):
                with pytest.raises(QuotaError, match="not made for such sizes"):
                    call(job)
            monkeypatch.undo()
