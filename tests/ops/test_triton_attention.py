"""The triton backend's cache and attention against the reference, as `test_triton.py` has its linear layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.interface import CacheSpec, PackedTensor
from quota.ops.reference import ReferenceBackend
from quota.ops.reference import attention as reference_attention
from quota.ops.triton import TritonBackend

pytest.importorskip("triton")

REFERENCE = ReferenceBackend()
TRITON = TritonBackend()
Call = Callable[..., Any]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


HEADS = {"8": (8, 0), "8 rotated": (8, 8), "80 rotated by 16": (80, 16), "128": (128, 0), "128 rotated": (128, 64)}


@pytest.mark.parametrize(("width", "hadamard"), HEADS.values(), ids=HEADS.keys())
def test_keys_are_quantised_as_the_reference_does(interpret: Call, width: int, hadamard: int) -> None:
    x = random(2, 3, 7, width) * torch.logspace(-8, 3, 7)[:, None]
    x[0, 0, 0] = 0
    found: PackedTensor = interpret(TRITON.quantize_kv, x, 4, hadamard)
    expected = REFERENCE.quantize_kv(x, 4, hadamard)
    if hadamard == 0:
        assert torch.equal(found.packed, expected.packed)
        assert torch.equal(found.scale, expected.scale)
        assert torch.equal(found.zero, expected.zero)
    step = expected.scale.float().max()
    restored = interpret(TRITON.dequantize_kv, found, torch.float32)
    torch.testing.assert_close(restored, REFERENCE.dequantize_kv(found, torch.float32), rtol=1e-5, atol=1e-5)
    assert (restored - x).abs().max() <= step * width**0.5


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -1e5], ids=["NaN", "infinity", "beyond float16"])
def test_keys_that_float16_cannot_hold_are_an_error(interpret: Call, value: float) -> None:
    x = torch.zeros(1, 2, 3, 16)
    x[0, 1, 2, 5] = value
    with pytest.raises(QuotaError, match="beyond 65504"):
        interpret(TRITON.quantize_kv, x, 4, 0)


SHAPES = {
    "one token": (1, 1, 1, 1, 8, 0),
    "shared keys": (2, 6, 2, 5, 24, 8),
    "one key head for 20": (1, 20, 1, 70, 32, 32),
    "pieces": (2, 4, 4, 150, 64, 64),
}


@pytest.mark.parametrize("more", [False, True], ids=["logits as they are", "added logits"])
@pytest.mark.parametrize("masked", [False, True], ids=["all valid", "empty slots"])
@pytest.mark.parametrize(
    ("batch", "heads", "groups", "tokens", "width", "hadamard"), SHAPES.values(), ids=SHAPES.keys()
)
def test_decode_attention_is_the_reference(
    interpret: Call,
    batch: int,
    heads: int,
    groups: int,
    tokens: int,
    width: int,
    hadamard: int,
    masked: bool,
    more: bool,
) -> None:
    query = random(batch, heads, 1, width)
    keys = REFERENCE.quantize_kv(random(batch, groups, tokens, width, seed=1), 4, hadamard)
    values = REFERENCE.quantize_kv(random(batch, groups, tokens, width, seed=2), 4, 0)
    valid = (random(batch, tokens, seed=3) > 0).index_fill(1, torch.tensor(tokens - 1), True) if masked else None
    added = random(batch, heads, tokens, seed=4) if more else None
    arguments = query, keys, values, valid, width**-0.5, tokens, added
    expected = REFERENCE.decode_attention(*arguments)
    torch.testing.assert_close(interpret(TRITON.decode_attention, *arguments), expected, rtol=1e-4, atol=1e-5)


def test_decode_attention_reads_a_cache_with_room_to_grow(interpret: Call) -> None:
    # Rotated values too: the output is rotated back.
    keys, values = (REFERENCE.quantize_kv(random(2, 2, 16, 16, seed=seed), 4, 16) for seed in (1, 2))
    held = [PackedTensor(*(part[:, :, :9] for part in (x.packed, x.scale, x.zero)), 4, 16, 16) for x in (keys, values)]
    query = random(2, 4, 1, 16)
    expected = REFERENCE.decode_attention(query, *held, None, 0.25)
    found = interpret(_decode_views, query, keys, values, 9)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def _decode_views(query: Tensor, keys: PackedTensor, values: PackedTensor, tokens: int) -> Tensor:
    # Cut where they are used: on their way to another process, views become whole tensors.
    held = [
        PackedTensor(*(part[:, :, :tokens] for part in (x.packed, x.scale, x.zero)), 4, x.width, x.hadamard)
        for x in (keys, values)
    ]
    return TRITON.decode_attention(query, *held, None, 0.25)


def test_decode_attention_without_any_valid_token_is_zero(interpret: Call) -> None:
    stored = REFERENCE.quantize_kv(random(2, 1, 70, 16), 4, 0)
    valid = torch.zeros(2, 70, dtype=torch.bool)
    valid[1, 3] = True
    result = interpret(TRITON.decode_attention, random(2, 2, 1, 16), stored, stored, valid, 0.25)
    assert not result[0].any()
    assert result[1].any()


PREFILLS = {
    "one token": (1, 1, 1, 1, 1, 8),
    "earlier tokens": (2, 4, 2, 7, 12, 24),
    "tiles": (1, 2, 1, 70, 90, 64),
    "whole tiles": (1, 2, 2, 64, 64, 16),
}


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "all to all"])
@pytest.mark.parametrize(("batch", "heads", "groups", "queries", "length", "width"), PREFILLS.values(), ids=PREFILLS)
def test_attention_and_its_sums_are_the_references(
    interpret: Call, batch: int, heads: int, groups: int, queries: int, length: int, width: int, causal: bool
) -> None:
    query, key = random(batch, heads, queries, width), random(batch, groups, length, width, seed=1)
    rows, visible = random(batch, 2, queries, seed=2) > 0, random(batch, length, seed=3) > -0.5
    # If causal the first query, or more, sees nothing.
    visible[:, : length - queries + 1] = queries == 1
    arguments = query, key, key.flip(-1), rows, visible, width**-0.5, causal
    output, sums = interpret(TRITON.attention, *arguments)
    expected, expected_sums = reference_attention.attention_naive(*arguments)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sums, expected_sums, rtol=1e-4, atol=1e-5)


def test_attention_takes_transposed_float16(interpret: Call) -> None:
    query, key = (random(1, 20, heads, 16, seed=heads).half().transpose(1, 2) for heads in (4, 2))
    rows, visible = torch.ones(1, 1, 20, dtype=torch.bool), torch.ones(1, 20, dtype=torch.bool)
    output, sums = interpret(TRITON.attention, query, key, key, rows, visible, 0.25)
    expected, expected_sums = REFERENCE.attention(query, key, key, rows, visible, 0.25)
    assert output.dtype == torch.float16
    torch.testing.assert_close(output, expected, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(sums, expected_sums, rtol=1e-4, atol=1e-4)


CACHES = {"4 bits only": (8, 64, 0), "multiple of 8": (4, 20, 0), "rotates": (4, 128, 128)}


@pytest.mark.parametrize(("reason", "cache"), CACHES.items(), ids=CACHES)
def test_caches_it_lacks(reason: str, cache: tuple[int, ...]) -> None:
    assert reason in str(TRITON.lacks_cache(CacheSpec(*cache)))
    assert TRITON.lacks_cache(CacheSpec(4, 128, 64)) is None
