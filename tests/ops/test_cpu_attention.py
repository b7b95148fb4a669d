"""The C++ kernels of cache and attention against the reference, on every instruction set of this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.instruction_sets import HERE, needs_library, using
from torch import Tensor
from torch.nn import functional

from quota.errors import QuotaError
from quota.ops.cpu import attention as prefill
from quota.ops.cpu import cache as kv
from quota.ops.interface import CacheSpec, PackedTensor
from quota.ops.reference import attention as reference

pytestmark = needs_library

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# One unit in the last place of numbers of about 2, and what a float32 sum in another order may differ by.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())


@pytest.fixture(params=HERE, autouse=True, scope="module")
def isa(request: pytest.FixtureRequest) -> Iterator[None]:
    with using(request.param):
        yield


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def heads_apart(x: Tensor) -> Tensor:
    """The same numbers as a projection leaves them: token by token, heads behind one another."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def assert_same(actual: PackedTensor, expected: PackedTensor) -> None:
    for name in ("packed", "scale", "zero"):
        assert torch.equal(getattr(actual, name), getattr(expected, name)), name


class TestQuantize:
    @dtypes
    @pytest.mark.parametrize("width", [8, 16, 24, 40, 64, 80, 128, 256, 1024])
    def test_equals_the_reference_bit_for_bit(self, width: int, dtype: torch.dtype) -> None:
        x = heads_apart(random(2, 3, 5, width) * 3 + 1).to(dtype)
        assert_same(kv.quantize_kv(x, 4, 0), reference.quantize_kv(x, 4, 0))

    @dtypes
    @pytest.mark.parametrize("block", [2, 4, 8, 16, 32, 64, 128])
    def test_rotation_differs_by_one_level_at_ties_only(self, block: int, dtype: torch.dtype) -> None:
        x = random(2, 3, 40, 128).to(dtype)
        actual, expected = kv.quantize_kv(x, 4, block), reference.quantize_kv(x, 4, block)
        assert (actual.packed == expected.packed).float().mean() > 0.99
        torch.testing.assert_close(actual.scale, expected.scale, atol=0, rtol=2**-9)
        difference = reference.dequantize_kv(actual, torch.float32) - reference.dequantize_kv(expected, torch.float32)
        assert (difference.norm(dim=-1) <= 2 * expected.scale[..., 0].float()).all()

    @pytest.mark.parametrize(
        "row",
        [
            torch.zeros(64),
            torch.full((64,), -2.5),
            torch.full((64,), 1e-40),
            torch.cat([torch.full((63,), 1e-3), torch.tensor([1e4])]),
            torch.cat([torch.full((63,), -65504.0), torch.tensor([65504.0])]),
            torch.arange(64) / 15 * 0.5,
        ],
        ids=["zeros", "constant", "denormal", "outlier", "widest", "ties"],
    )
    def test_adversarial_rows(self, row: Tensor) -> None:
        x = row.expand(1, 1, 3, 64)
        assert_same(kv.quantize_kv(x, 4, 0), reference.quantize_kv(x, 4, 0))

    @pytest.mark.parametrize("places", [(0, 7), (7, 0)], ids=["0 first", "-0 first"])
    def test_zero_has_one_sign(self, places: tuple[int, int]) -> None:
        x = torch.ones(1, 1, 1, 8)
        x[..., list(places)] = torch.tensor([0.0, -0.0])
        assert not kv.quantize_kv(x, 4, 0).zero.view(torch.int16).any()

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e7], ids=str)
    @pytest.mark.parametrize("hadamard", [0, 64])
    @pytest.mark.parametrize("place", [0, 17, 63])
    def test_refuses_what_it_cannot_store(self, value: float, hadamard: int, place: int) -> None:
        x = random(1, 2, 3, 64)
        x[0, 1, 2, place] = value
        with pytest.raises(QuotaError, match="NaN"):
            kv.quantize_kv(x, 4, hadamard)

    def test_refuses_a_width_that_fills_no_bytes(self) -> None:
        with pytest.raises(QuotaError, match="multiple of 8"):
            kv.quantize_kv(random(1, 1, 2, 12), 4, 4)

    @pytest.mark.parametrize("shape", [(0, 2, 3, 64), (1, 2, 0, 64)], ids=["no sample", "no token"])
    def test_nothing_to_do(self, shape: tuple[int, ...]) -> None:
        stored = kv.quantize_kv(torch.zeros(shape), 4, 64)
        assert kv.dequantize_kv(stored, torch.float32).shape == shape


@dtypes
@pytest.mark.parametrize("width", [8, 24, 64, 80, 128, 1024])
@pytest.mark.parametrize("hadamard", [0, 8])
def test_dequantize(width: int, hadamard: int, dtype: torch.dtype) -> None:
    stored = with_room(reference.quantize_kv(random(2, 3, 5, width), 4, hadamard))
    actual, expected = kv.dequantize_kv(stored, dtype), reference.dequantize_kv(stored, dtype)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, expected, atol=TOLERANCE[dtype], rtol=0)


def with_room(stored: PackedTensor) -> PackedTensor:
    """The same tensor as a view of memory with room for more tokens, as in a cache."""
    parts = []
    for part in (stored.packed, stored.scale, stored.zero):
        shape = list(part.shape)
        shape[2] += 3
        room = part.new_full(shape, 85 if part.dtype == torch.uint8 else torch.nan)
        room[:, :, : part.shape[2]] = part
        parts.append(room[:, :, : part.shape[2]])
    return PackedTensor(*parts, stored.bits, stored.width, stored.hadamard)


class TestDecode:
    @settings(deadline=None, max_examples=60)
    @given(
        batch=st.integers(1, 3),
        groups=st.integers(1, 3),
        shared=st.integers(1, 9),
        tokens=st.integers(1, 70),
        width=st.sampled_from([8, 24, 64, 128, 136]),
        hadamard=st.sampled_from([0, 8]),
        masked=st.booleans(),
        more=st.booleans(),
        dtype=st.sampled_from(list(DTYPES.values())),
        seed=st.integers(0, 999),
    )
    def test_equals_the_reference(
        self,
        batch: int,
        groups: int,
        shared: int,
        tokens: int,
        width: int,
        hadamard: int,
        masked: bool,
        more: bool,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        query = heads_apart(torch.randn(batch, groups * shared, 1, width, generator=generator)).to(dtype)
        keys, values = torch.randn(2, batch, groups, tokens, width, generator=generator)
        stored = with_room(kv.quantize_kv(keys, 4, hadamard)), with_room(kv.quantize_kv(values, 4, 0))
        valid = torch.rand(batch, tokens, generator=generator) < 0.7 if masked else None
        added = torch.randn(batch, groups * shared, tokens, generator=generator) if more else None
        actual = kv.decode_attention(query, *stored, valid, width**-0.5, added=added)
        assert actual.dtype == dtype and actual.shape == query.shape
        expected = reference.decode_attention(query, *stored, valid, width**-0.5, added=added)
        torch.testing.assert_close(actual, expected, atol=TOLERANCE[dtype], rtol=0)

    def test_values_may_be_rotated_too(self) -> None:
        keys, values = (kv.quantize_kv(random(1, 2, 9, 64, seed=seed), 4, 64) for seed in (1, 2))
        query = random(1, 4, 1, 64)
        expected = reference.decode_attention(query, keys, values, None, 0.125)
        torch.testing.assert_close(kv.decode_attention(query, keys, values, None, 0.125), expected, atol=2e-5, rtol=0)

    def test_logits_far_apart(self) -> None:
        keys, values = (kv.quantize_kv(30 * random(1, 1, 40, 64, seed=seed), 4, 64) for seed in (1, 2))
        query = 30 * random(1, 1, 1, 64)
        expected = reference.decode_attention(query, keys, values, None, 1.0)
        torch.testing.assert_close(kv.decode_attention(query, keys, values, None, 1.0), expected, atol=1e-3, rtol=0)

    def test_a_sample_is_the_same_alone_and_in_a_batch(self) -> None:
        query, keys, values = random(2, 6, 1, 64), random(2, 2, 37, 64, seed=1), random(2, 2, 37, 64, seed=2)
        valid = torch.ones(2, 37, dtype=torch.bool)
        valid[1, :11] = False
        together = kv.decode_attention(query, kv.quantize_kv(keys, 4, 64), kv.quantize_kv(values, 4, 0), valid, 0.125)
        shorter = (kv.quantize_kv(keys[1:, :, 11:], 4, 64), kv.quantize_kv(values[1:, :, 11:], 4, 0))
        assert torch.equal(together[1:], kv.decode_attention(query[1:], *shorter, None, 0.125))

    def test_nothing_valid_gives_zeros(self) -> None:
        stored = kv.quantize_kv(random(1, 1, 3, 8), 4, 8)
        output = kv.decode_attention(random(1, 2, 1, 8), stored, stored, torch.zeros(1, 3, dtype=torch.bool), 1.0)
        assert torch.equal(output, torch.zeros(1, 2, 1, 8))

    def test_a_query_that_is_not_a_number_stays_one(self) -> None:
        stored = kv.quantize_kv(random(1, 1, 20, 64), 4, 64)
        query = random(1, 2, 1, 64)
        query[0, 1, 0, 5] = torch.nan
        output = kv.decode_attention(query, stored, stored, None, 0.125)
        assert output[0, 1].isnan().all() and output[0, 0].isfinite().all()


class TestAttention:
    @settings(deadline=None, max_examples=40)
    @given(
        batch=st.integers(1, 3),
        groups=st.integers(1, 3),
        shared=st.integers(1, 3),
        queries=st.integers(1, 150),
        past=st.integers(0, 30),
        width=st.sampled_from([32, 64, 80, 96, 128]),
        sets=st.integers(0, 3),
        causal=st.booleans(),
        dtype=st.sampled_from(list(DTYPES.values())),
        pieces=st.sampled_from([1 << 8, 1 << 22]),
        seed=st.integers(0, 999),
    )
    def test_equals_the_reference(
        self,
        batch: int,
        groups: int,
        shared: int,
        queries: int,
        past: int,
        width: int,
        sets: int,
        causal: bool,
        dtype: torch.dtype,
        pieces: int,
        seed: int,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        query = heads_apart(torch.randn(batch, groups * shared, queries, width, generator=generator)).to(dtype)
        key, value = torch.randn(2, batch, groups, past + queries, width, generator=generator).to(dtype)
        visible = torch.rand(batch, past + queries, generator=generator) < 0.8
        rows = torch.rand(batch, sets, queries, generator=generator) < 0.5
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(prefill, "_LOGITS", pieces)
            patch.setattr(prefill, "_QUERIES", dict.fromkeys(DTYPES.values(), pieces >> 2))
            output, sums = prefill.attention(query, key, value, rows, visible, 0.125, causal)
        assert output.dtype == dtype and sums.dtype == torch.float32
        expected, expected_sums = reference.attention_naive(query, key, value, rows, visible, 0.125, causal)
        tolerance = 2 * TOLERANCE[dtype]
        torch.testing.assert_close(output, expected, atol=tolerance, rtol=0)
        torch.testing.assert_close(sums, expected_sums, atol=tolerance, rtol=tolerance)
        assert not sums.masked_select(~visible[:, None]).any()

    @dtypes
    @pytest.mark.parametrize("heads", [1, 16])
    def test_all_to_all_as_a_tower_attends(self, heads: int, dtype: torch.dtype) -> None:
        query, key, value = (heads_apart(random(1, heads, 145, 72, seed=seed)).to(dtype) for seed in range(3))
        visible, rows = torch.ones(1, 145, dtype=torch.bool), torch.zeros(1, 0, 145, dtype=torch.bool)
        output, _ = prefill.attention(query, key, value, rows, visible, 72**-0.5, causal=False)
        expected = functional.scaled_dot_product_attention(query.float(), key.float(), value.float())
        torch.testing.assert_close(output.float(), expected, atol=TOLERANCE[dtype], rtol=0)

    @pytest.mark.parametrize("causal", [False, True])
    def test_in_bfloat16_threads_change_no_bit(self, causal: bool) -> None:
        if not prefill.leads_attention(torch.bfloat16):
            pytest.skip("its products are torch's, whose order is torch's affair")
        query, key, value = (heads_apart(random(2, 4, 150, 80, seed=seed)).bfloat16() for seed in range(3))
        rows, visible = random(2, 2, 150, seed=3) > 0, random(2, 150, seed=4) > -1
        before, results = torch.get_num_threads(), []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(prefill.attention(query, key, value, rows, visible, 0.125, causal))
        torch.set_num_threads(before)
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))

    @pytest.mark.parametrize("causal", [False, True])
    def test_padding_in_front_changes_no_bit(self, causal: bool) -> None:
        query, key, value = (heads_apart(random(1, 2, 70, 64, seed=seed)).bfloat16() for seed in range(3))
        rows, visible = random(1, 2, 70, seed=3) > 0, torch.arange(70)[None] >= 9
        output, sums = prefill.attention(query, key, value, rows, visible, 0.125, causal)
        parts = (query[:, :, 9:], key[:, :, 9:], value[:, :, 9:], rows[:, :, 9:], visible[:, 9:])
        if causal:
            assert torch.equal(output[:, :, 9:], prefill.attention(*parts, 0.125)[0])
            assert not output[:, :, :9].any()
        else:
            expected, _ = reference.attention_naive(query, key, value, rows, visible, 0.125, causal=False)
            torch.testing.assert_close(output, expected, atol=TOLERANCE[torch.bfloat16], rtol=0)
        assert not sums[..., :9].any()

    @dtypes
    def test_a_sample_is_the_same_alone_and_in_a_batch(self, dtype: torch.dtype) -> None:
        query, key, value = (heads_apart(random(2, 4, 90, 64, seed=seed)).to(dtype) for seed in range(3))
        rows, visible = random(2, 2, 90, seed=3) > 0, torch.ones(2, 90, dtype=torch.bool)
        visible[1, :23] = False
        together = prefill.attention(query, key, value, rows, visible, 0.125)
        parts = (x[1:, :, 23:] for x in (query, key, value, rows))
        output, sums = prefill.attention(*parts, visible[1:, 23:], 0.125)
        assert torch.equal(together[0][1:, :, 23:], output)
        assert torch.equal(together[1][1:, :, 23:], sums)
        assert not together[0][1, :, :23].any()

    @pytest.mark.parametrize("sets", [0, 2])
    def test_measuring_changes_no_bit_of_the_output(self, sets: int) -> None:
        query, key, value = (random(1, 4, 90, 64, seed=seed) for seed in range(3))
        visible = torch.ones(1, 90, dtype=torch.bool)
        outputs = [prefill.attention(query, key, value, random(1, r, 90) > 0, visible, 0.1)[0] for r in (sets, 1)]
        assert torch.equal(*outputs)


def test_threads_change_no_bit() -> None:
    query, key, value = (random(2, 4, 150, 64, seed=seed) for seed in range(3))
    rows, visible = random(2, 2, 150) > 0, torch.ones(2, 150, dtype=torch.bool)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        stored = kv.quantize_kv(key, 4, 64), kv.quantize_kv(value, 4, 0)
        decoded = kv.decode_attention(query[:, :, :1], *stored, None, 0.125)
        # Without torch's own products, whose order is torch's affair.
        logits = random(4, 150, 150, seed=4)
        sums = prefill._softmax(logits, rows[0].contiguous(), visible[0], 0.125)
        results.append((stored[0].packed, kv.dequantize_kv(stored[0], torch.float32), decoded, logits, sums))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_lacks_other_bits_and_huge_heads() -> None:
    assert kv.lacks_cache(CacheSpec(bits=4, width=128, hadamard=64)) is None
    assert "4 bits" in str(kv.lacks_cache(CacheSpec(bits=8, width=128, hadamard=64)))
    assert "1024" in str(kv.lacks_cache(CacheSpec(bits=4, width=2048, hadamard=64)))
