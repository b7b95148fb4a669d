"""The jobs of cache and attention by their definition, one head and one token at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_quantize import fake_quantize
from torch import Tensor

from quota.ops import kv_integer
from quota.ops.hadamard import block_hadamard
from quota.ops.reference import attention as reference_attention
from quota.ops.reference.attention import (
    attention,
    attention_naive,
    decode_attention,
    dequantize_kv,
    quantize_kv,
)
from quota.ops.reference.tokens import activation_error
from quota.quantization.linear import input_spec
from quota.scheme import QuantizationScheme


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class TestStorage:
    @pytest.mark.parametrize("bits", [2, 3, 4, 8])
    @pytest.mark.parametrize("hadamard", [0, 32])
    def test_rotates_quantises_and_packs(self, bits: int, hadamard: int) -> None:
        x = random(2, 3, 5, 64)
        stored = quantize_kv(x, bits, hadamard)
        assert stored.packed.shape == (2, 3, 5, 8 * bits) and stored.scale.shape == stored.zero.shape == (2, 3, 5, 1)
        expected = kv_integer.dequantize_kv(*kv_integer.quantize_kv(block_hadamard(x, hadamard), bits))
        torch.testing.assert_close(dequantize_kv(stored, torch.float32), block_hadamard(expected, hadamard))

    def test_comes_back_in_the_type_asked_for(self) -> None:
        assert dequantize_kv(quantize_kv(random(1, 1, 2, 8), 4, 8), torch.bfloat16).dtype == torch.bfloat16


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 2),
    shared=st.integers(1, 3),
    queries=st.integers(1, 9),
    past=st.integers(0, 4),
    chunk=st.integers(1, 200),
    causal=st.booleans(),
    seed=st.integers(0, 999),
)
def test_attention_equals_the_naive_version(
    batch: int, groups: int, shared: int, queries: int, past: int, chunk: int, causal: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, groups * shared, queries, 8, generator=generator)
    key, value = torch.randn(2, batch, groups, past + queries, 8, generator=generator)
    visible = torch.rand(batch, past + queries, generator=generator) < 0.8
    rows = torch.rand(batch, 2, queries, generator=generator) < 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_attention, "_CHUNK", chunk)
        output, sums = attention(query, key, value, rows, visible, 0.3, causal)
    expected, expected_sums = attention_naive(query, key, value, rows, visible, 0.3, causal)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(sums, expected_sums, atol=1e-5, rtol=0)
    # A row of attention adds up to one, or to nothing if it sees no key; and nothing goes to a hidden key.
    earlier = torch.ones(queries, past + queries, dtype=torch.bool).tril(past if causal else past + queries)
    sees = (visible[:, None] & earlier).any(dim=-1)
    torch.testing.assert_close(sums.sum(dim=-1), (rows & sees[:, None]).sum(dim=-1).float(), atol=1e-4, rtol=0)
    assert not sums.masked_select(~visible[:, None]).any()


@pytest.mark.parametrize("chunk", [10, 1 << 20], ids=["in chunks", "at once"])
def test_attention_to_the_keys_of_each_query(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = random(2, 4, 5, 8), random(2, 2, 9, 8, seed=1), random(2, 2, 9, 8, seed=2)
    generator = torch.Generator().manual_seed(3)
    pairs = torch.rand(2, 5, 9, generator=generator) < 0.5
    pairs[0, 1] = False
    rows = torch.rand(2, 2, 5, generator=generator) < 0.5
    monkeypatch.setattr(reference_attention, "_CHUNK", chunk)
    output, sums = attention(query, key, value, rows, pairs, 0.3)
    expected, expected_sums = attention_naive(query, key, value, rows, pairs, 0.3)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(sums, expected_sums, atol=1e-5, rtol=0)
    assert not output[0, :, 1].any()


@pytest.mark.parametrize("masked", [False, True])
def test_decoding_looks_at_every_valid_slot(masked: bool) -> None:
    query, keys, values = random(2, 4, 1, 64), random(2, 2, 9, 64, seed=1), random(2, 2, 9, 64, seed=2)
    stored = quantize_kv(keys, 4, 64), quantize_kv(values, 4, 0)
    valid = torch.rand(2, 9, generator=torch.Generator().manual_seed(0)) < 0.6 if masked else None
    added = random(2, 4, 9, seed=3)
    output = decode_attention(query, *stored, valid, 0.125, added=added)
    numbers = [dequantize_kv(part, torch.float32) for part in stored]
    for sample in range(2):
        slots = slice(None) if valid is None else valid[sample]
        for head in range(4):
            key, value = (part[sample, head // 2, slots] for part in numbers)
            logits = key @ query[sample, head, 0] * 0.125 + added[sample, head, slots]
            expected = logits.softmax(dim=0) @ value
            torch.testing.assert_close(output[sample, head, 0], expected, atol=1e-5, rtol=0)


def test_decoding_over_nothing_valid_gives_zeros() -> None:
    stored = quantize_kv(random(1, 1, 3, 8), 4, 8)
    output = decode_attention(random(1, 2, 1, 8), stored, stored, torch.zeros(1, 3, dtype=torch.bool), 1.0)
    assert torch.equal(output, torch.zeros(1, 2, 1, 8))


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_activation_error_is_that_of_a_deployed_linear_layer(bits: int) -> None:
    x, scheme = random(5, 96), QuantizationScheme(activation_bits=bits)
    expected = (fake_quantize(x, scheme) - x).norm(dim=-1)
    actual = activation_error(x, input_spec(scheme, 96))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
