"""The quantised KV cache: what it stores, what it returns, and how it gets into a model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import IMAGE, tiny_batch, tiny_llava, tiny_prompt
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from quota.errors import QuotaError
from quota.quantization.hadamard import block_hadamard
from quota.quantization.kv_cache import (
    QuantizedLayer,
    adopt,
    attach_cache,
    dequantize_kv,
    new_layer,
    pack,
    quantize_kv,
    unpack,
)
from quota.quantization.kv_slots import SlotLayer
from quota.scheme import QuantizationScheme

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


class TestLayer:
    @all_bits
    @pytest.mark.parametrize("hadamard", [0, 64])
    def test_returns_what_it_stored(self, bits: int, hadamard: int) -> None:
        layer = new_layer(QuantizationScheme(kv_bits=bits, hadamard=hadamard))
        parts = [(random(2, 3, length, 64, seed=length), random(2, 3, length, 64, seed=9)) for length in (7, 1, 4)]
        for keys, values in parts:
            returned = layer.update(keys, values)
        keys, values = (torch.cat(tensors, dim=2) for tensors in zip(*parts, strict=True))
        stored = dequantize_kv(*quantize_kv(block_hadamard(keys, hadamard), bits))
        torch.testing.assert_close(returned[0], block_hadamard(stored, hadamard), atol=1e-5, rtol=0)
        assert torch.equal(returned[1], dequantize_kv(*quantize_kv(values, bits)))

    def test_rotation_spares_the_keys_an_outlier_channel(self) -> None:
        keys = random(1, 2, 32, 64)
        keys[..., 5] += 40
        errors = []
        for hadamard in (0, 64):
            layer = new_layer(QuantizationScheme(hadamard=hadamard))
            errors.append((layer.update(keys, keys)[0] - keys).norm())
        assert errors[1] < 0.5 * errors[0]

    def test_bytes(self) -> None:
        layer = new_layer(QuantizationScheme())
        assert layer.nbytes() == 0
        layer.update(random(2, 3, 10, 64), random(2, 3, 10, 64))
        # Per token and head: 32 bytes of keys with a scale and a zero, the same of values; a position per slot.
        assert layer.nbytes() == 2 * 3 * 10 * 2 * (32 + 2 + 2) + 2 * 10 * 4
        assert layer.keys.dtype == torch.uint8 and layer.keys.shape == (2, 3, 10, 32)

    def test_bfloat16_comes_back_as_such(self) -> None:
        layer = new_layer(QuantizationScheme())
        x = random(1, 1, 4, 64).bfloat16()
        assert [tensor.dtype for tensor in layer.update(x, x)] == [torch.bfloat16] * 2

    @pytest.mark.parametrize("scheme", [None, QuantizationScheme(kv_bits=16)], ids=["no scheme", "16 bits"])
    def test_without_quantisation(self, scheme: QuantizationScheme | None) -> None:
        layer, keys = new_layer(scheme), random(1, 1, 4, 64)
        assert type(layer) is SlotLayer
        assert torch.equal(layer.update(keys, -keys)[1], -keys)


class TestAttach:
    def batch(self) -> dict[str, Tensor]:
        return tiny_batch([tiny_prompt(1, 5, seed=1), tiny_prompt(1, 9, seed=2)])

    def test_the_prefill_attends_to_quantised_values(self) -> None:
        model = tiny_llava()
        with torch.no_grad():
            exact = model(**self.batch())
            hook = attach_cache(model, QuantizationScheme())
            quantised, free = model(**self.batch()), model(**self.batch(), use_cache=False)
            hook.detach()
            after = model(**self.batch())
        assert all(isinstance(layer, QuantizedLayer) for layer in quantised.past_key_values.layers)
        assert not torch.allclose(quantised.logits, exact.logits, atol=1e-3)
        assert torch.equal(free.logits, quantised.logits) and free.past_key_values is None
        assert torch.equal(after.logits, exact.logits)

    def test_sixteen_bits_change_nothing(self) -> None:
        model = tiny_llava()
        options = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [IMAGE]}
        expected = model.generate(**self.batch(), **options)
        attach_cache(model, None)
        assert torch.equal(model.generate(**self.batch(), **options), expected)

    def test_attaching_again_replaces_the_scheme(self) -> None:
        model = tiny_llava()
        attach_cache(model, QuantizationScheme(kv_bits=8))
        hook = attach_cache(model, QuantizationScheme(kv_bits=2))
        with torch.no_grad():
            layers = model(**self.batch()).past_key_values.layers
        assert layers[0].keys.shape[-1] == 16
        hook.detach()
        assert not hasattr(model, "quota_cache")
        assert not model.model.language_model._forward_pre_hooks

    def test_a_cache_given_without_use_cache_stays(self) -> None:
        model, cache = tiny_llava(), DynamicCache()
        attach_cache(model, QuantizationScheme())
        with torch.no_grad():
            output = model(**self.batch(), past_key_values=cache, use_cache=False)
        assert output.past_key_values is cache

    def test_refuses_other_kinds_of_cache(self) -> None:
        config = tiny_llava().config.get_text_config()
        sliding = DynamicCache()
        sliding.layers = [DynamicSlidingWindowLayer(sliding_window=8)]
        filled = DynamicCache()
        filled.update(random(1, 1, 3, 64), random(1, 1, 3, 64), 0)
        for cache, reason in [
            (StaticCache(config=config, max_cache_len=8), "StaticCache"),
            (sliding, "DynamicSlidingWindowLayer"),
            (filled, "new cache"),
        ]:
            with pytest.raises(QuotaError, match=reason):
                adopt(cache, 5, QuantizationScheme())

    def test_refuses_a_cache_under_another_scheme(self) -> None:
        cache = DynamicCache()
        adopt(cache, 5, QuantizationScheme())
        adopt(cache, 5, QuantizationScheme())
        with pytest.raises(QuotaError, match="another scheme"):
            adopt(cache, 5, None)
