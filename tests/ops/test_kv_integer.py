"""The quantiser of keys and values, and its packed form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.kv_integer import dequantize_kv, pack, quantize_kv, unpack

BITS = [2, 3, 4, 8]
all_bits = pytest.mark.parametrize("bits", BITS)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class TestQuantiser:
    @all_bits
    def test_error_is_at_most_half_a_step(self, bits: int) -> None:
        x = random(3, 5, 64) * 10 + 4
        q, scale, zero = quantize_kv(x, bits)
        assert q.dtype == torch.uint8 and scale.dtype == zero.dtype == torch.float16
        assert int(q.max()) == 2**bits - 1 and int(q.min()) == 0
        # Float16 scale and zero add their own rounding, half a unit in the eleventh digit of the largest number.
        rounding = x.abs().amax(-1, keepdim=True) * 2**-10
        assert ((dequantize_kv(q, scale, zero) - x).abs() <= scale.float() / 2 + rounding).all()

    def test_the_largest_and_the_smallest_number_are_kept(self) -> None:
        x = torch.tensor([[-1.0, 0.0, 0.25, 14.0]])
        assert dequantize_kv(*quantize_kv(x, 4)).tolist() == [[-1.0, 0.0, 0.0, 14.0]]

    @pytest.mark.parametrize("value", [0.0, 3.0, -1e-30], ids=str)
    def test_a_token_without_spread(self, value: float) -> None:
        x = torch.full((2, 64), value)
        assert torch.allclose(dequantize_kv(*quantize_kv(x, 4)), x, atol=1e-6)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e6], ids=str)
    def test_refuses_what_it_cannot_store(self, value: float) -> None:
        x = random(2, 64)
        x[1, 7] = value
        with pytest.raises(QuotaError, match="NaN"):
            quantize_kv(x, 4)


class TestPacking:
    @given(bits=st.sampled_from(BITS), bytes_a_bit=st.integers(1, 16), seed=st.integers(0, 99))
    def test_round_trip(self, bits: int, bytes_a_bit: int, seed: int) -> None:
        width = 8 * bytes_a_bit
        generator = torch.Generator().manual_seed(seed)
        q = torch.randint(0, 2**bits, (2, 3, width), generator=generator, dtype=torch.uint8)
        packed = pack(q, bits)
        assert packed.dtype == torch.uint8 and packed.shape == (2, 3, width * bits // 8)
        assert torch.equal(unpack(packed, bits, width), q)

    def test_layout(self) -> None:
        q = torch.arange(8, dtype=torch.uint8)
        assert pack(q, 4).tolist() == [0x10, 0x32, 0x54, 0x76]
        # Two low bits of each, four a byte, then the high bits, eight a byte.
        assert pack(q, 3).tolist() == [0b11100100, 0b11100100, 0b11110000]

    def test_refuses_a_width_that_fills_no_bytes(self) -> None:
        with pytest.raises(QuotaError, match="multiple of 8"):
            pack(torch.zeros(2, 12, dtype=torch.uint8), 4)
