"""Every job of every backend on nothing: no rows, no samples, no heads, no tokens."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from support.instruction_sets import HERE, using
from support.interpreted import interpreter
from support.operands import make_weight
from torch import Tensor

from quota import ops
from quota.ops.head_transform import HeadTransform
from quota.ops.interface import Backend, InputSpec
from quota.ops.triton import TritonBackend

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Any]:
    """The triton backend, in triton's interpreter."""
    pytest.importorskip("triton")
    with interpreter() as call:

        class Interpreted:
            def __getattr__(self, job: str) -> Any:
                return partial(call, getattr(TritonBackend(), job))

        yield Interpreted()


@pytest.fixture(params=["triton", *HERE, "torch", "reference"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each one, cpu under the name of every instruction set."""
    if request.param == "triton":
        yield request.getfixturevalue("interpreted")
    elif request.param in HERE:
        with using(request.param):
            yield ops.backend("cpu")
    elif ops.why_not(request.param) is None:
        yield ops.backend(request.param)
    else:
        pytest.skip("not here")


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def nothing(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.bool)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("outputs", [24, 1])
def test_linear_without_rows(backend: Backend, outputs: int, dtype: torch.dtype) -> None:
    [y] = backend.linear(zeros(0, 128, dtype=dtype), [make_weight(outputs, 128, hadamard=64)])
    assert y.shape == (0, outputs) and y.dtype == dtype


def test_linear_without_outputs(backend: Backend) -> None:
    assert backend.linear(zeros(3, 128), [make_weight(0, 128)])[0].shape == (3, 0)


@pytest.mark.parametrize(("rows", "outputs"), [(0, 24), (3, 0), (0, 0)])
def test_sums_of_nothing(backend: Backend, rows: int, outputs: int) -> None:
    sums = backend.sums(zeros(rows, 128, dtype=torch.int8), make_weight(outputs, 128))
    assert sums.shape == (rows, outputs) and sums.dtype == torch.int32


def test_values_of_nothing(backend: Backend) -> None:
    values, scale = backend.quantize(zeros(0, 128), InputSpec(128, 4, 64, 64))
    assert values.shape == (0, 128) and scale.shape == (0,)


@pytest.mark.parametrize("shape", [(0, 2, 5), (2, 0, 5), (2, 2, 0), (0, 0, 0)], ids=str)
def test_a_cache_of_nothing(backend: Backend, shape: tuple[int, int, int]) -> None:
    stored = backend.quantize_kv(zeros(*shape, 32), 4, 32)
    assert stored.packed.shape == (*shape, 16) and stored.scale.shape == stored.zero.shape == (*shape, 1)
    assert backend.dequantize_kv(stored, torch.float32).shape == (*shape, 32)


@pytest.mark.parametrize("shape", [(0, 2, 5), (2, 0, 5), (2, 2, 0), (0, 0, 0)], ids=str)
def test_a_cache_of_nothing_that_is_transformed(backend: Backend, shape: tuple[int, int, int]) -> None:
    groups = shape[1]
    transform = HeadTransform(zeros(groups, 32), torch.eye(32).repeat(groups, 1, 1))
    x = zeros(*shape, 32)
    stored = backend.quantize_kv(x, 4, 32, transform), backend.quantize_kv(x, 4, 0)
    read = backend.store_kv(x, x, stored, 0, True)
    assert [each.shape for each in read or ()] == [x.shape] * 2
    query = zeros(shape[0], 2 * groups, 1, 32)
    assert torch.equal(backend.decode_attention(query, *stored, None, 0.1), query)


@pytest.mark.parametrize(
    ("batch", "heads", "groups", "tokens"), [(0, 4, 2, 5), (2, 0, 2, 5), (2, 0, 0, 5), (2, 4, 2, 0)]
)
@pytest.mark.parametrize("masked", [True, False])
def test_decoding_over_nothing(
    backend: Backend, batch: int, heads: int, groups: int, tokens: int, masked: bool
) -> None:
    stored = backend.quantize_kv(torch.ones(batch, groups, tokens, 32), 4, 32)
    valid = torch.ones(batch, tokens, dtype=torch.bool) if masked else None
    found = backend.decode_attention(torch.ones(batch, heads, 1, 32), stored, stored, valid, 0.1)
    assert torch.equal(found, zeros(batch, heads, 1, 32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("batch", "heads", "groups", "queries", "length", "sets"),
    [
        *((0, 4, 2, 5, 9, 2), (2, 0, 2, 5, 9, 2), (2, 0, 0, 5, 9, 2)),
        *((2, 4, 2, 0, 9, 2), (2, 4, 2, 0, 0, 2), (2, 4, 2, 5, 9, 0)),
    ],
)
def test_attention_of_nothing(
    backend: Backend, batch: int, heads: int, groups: int, queries: int, length: int, sets: int, dtype: torch.dtype
) -> None:
    query = zeros(batch, heads, queries, 32, dtype=dtype)
    keys = zeros(batch, groups, length, 32, dtype=dtype)
    rows, visible = nothing(batch, sets, queries), ~nothing(batch, length)
    output, sums = backend.attention(query, keys, keys, rows, visible, 0.1)
    assert torch.equal(output, query)
    assert torch.equal(sums, zeros(batch, sets, length))


@pytest.mark.parametrize("bits", [4, 16])
def test_no_tokens_have_no_error(backend: Backend, bits: int) -> None:
    assert backend.activation_error(zeros(0, 128), InputSpec(128, bits, 64, 64)).shape == (0,)


@pytest.mark.parametrize(("batch", "tokens"), [(0, 5), (2, 0), (0, 0)])
def test_no_tokens_have_no_scores(backend: Backend, batch: int, tokens: int) -> None:
    counts = torch.full((batch,), 3)
    found = backend.information(zeros(batch, tokens, 8), nothing(batch, tokens), counts, 0.01)
    assert found.shape == (batch, tokens)


@pytest.mark.parametrize(
    ("rows", "tokens", "batch", "length"), [(0, 5, 2, 9), (2, 0, 2, 9), (0, 0, 2, 0), (0, 0, 0, 9)]
)
def test_a_choice_among_nothing(backend: Backend, rows: int, tokens: int, batch: int, length: int) -> None:
    places = zeros(rows, tokens, dtype=torch.int64)
    cut = backend.cut(zeros(rows, tokens), [3] * rows, nothing(rows, tokens), places, ~nothing(batch, length))
    assert cut.kept.all() and cut.slots.shape == cut.filled.shape == (batch, length if batch else 0)
