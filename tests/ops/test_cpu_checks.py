"""No tensor reaches a C++ kernel that is not what the kernel will read: another type, shape or order is one line."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.cpu_jobs import (
    EVERY,
    FREE,
    JOBS,
    WEIGHT,
    B,
    D,
    G,
    H,
    K,
    M,
    N,
    R,
    S,
    T,
    V,
    call,
    cells,
    operands,
    random,
    run_attention,
    stored,
)
from support.instruction_sets import every_isa, needs_library, using
from support.operands import make_weight
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.cpu import cache, library, linear

pytestmark = needs_library


@pytest.mark.parametrize("job", JOBS)
def test_what_is_right_runs(job: str) -> None:
    assert call(job).numel()


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_torch_defaults_change_nothing(job: str, default: torch.dtype) -> None:
    """transformers changes that of the type, for all threads, while it loads a model."""
    expected = call(job)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        found = call(job)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found, expected)


def test_a_default_device_is_not_where_kernels_write() -> None:
    expected = linear.quantize(random(M, K), WEIGHT.spec.inputs)
    inputs = random(M, K)
    with torch.device("meta"):
        found = linear.quantize(inputs, WEIGHT.spec.inputs)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


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
                "information",
                "cut",
            ):
                with pytest.raises(QuotaError, match="not made for such sizes"):
                    call(job)
            monkeypatch.undo()
