"""The quantised KV cache: what it stores, what it returns, and how it gets into a model."""

from __future__ import annotations

import pytest
import torch
from support.tiny import IMAGE, tiny_batch, tiny_llava, tiny_prompt
from torch import Tensor
from transformers import DynamicCache, LlavaForConditionalGeneration, StaticCache
from transformers.cache_utils import DynamicIndexedLayer

from quota import ops
from quota.attention import function as attention
from quota.attention import hook as cache_hook
from quota.attention.cache import QuantizedLayer, adopt, new_layer
from quota.attention.hook import attach_cache
from quota.attention.slots import SlotLayer
from quota.errors import QuotaError
from quota.models import family
from quota.ops.hadamard import block_hadamard
from quota.ops.kv_integer import dequantize_kv, quantize_kv
from quota.scheme import QuantizationScheme

BITS = [2, 3, 4, 8]
all_bits = pytest.mark.parametrize("bits", BITS)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


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


@pytest.mark.parametrize("bits", [3, 4])
class TestDecoding:
    """Steps of one token read the packed cache; with attention weights asked for, they read its numbers."""

    def agree(self, bits: int, implementation: str = "sdpa", **options: object) -> None:
        prompts = [tiny_prompt(1, 5, seed=1), tiny_prompt(1, 9, seed=2)]
        model = tiny_llava(implementation, heads=4, kv_heads=2)
        attach_cache(model, QuantizationScheme(kv_bits=bits))
        given = {
            "max_new_tokens": 6,
            "do_sample": False,
            "suppress_tokens": [IMAGE],
            "return_dict_in_generate": True,
            "output_logits": True,
            **options,
        }
        packed = model.generate(**tiny_batch(prompts), **given)
        with pytest.MonkeyPatch.context() as patch:
            # The prefill is the same, or a rounding of what it stores may fall on the other side.
            patch.setattr(cache_hook, "_may_deploy", lambda _, kwargs, causal: kwargs["inputs_embeds"].shape[1] > 1)
            numbers = model.generate(**tiny_batch(prompts), **given)
        assert torch.equal(packed.sequences, numbers.sequences)
        torch.testing.assert_close(torch.stack(packed.logits), torch.stack(numbers.logits), atol=1e-4, rtol=0)

    @pytest.mark.parametrize("implementation", ["sdpa", "eager"])
    def test_left_padding(self, bits: int, implementation: str) -> None:
        self.agree(bits, implementation)

    def test_beam_search(self, bits: int) -> None:
        self.agree(bits, num_beams=3)

    def test_drafted_words(self, bits: int) -> None:
        model = tiny_llava()
        attach_cache(model, QuantizationScheme(kv_bits=bits))
        batch = tiny_batch([tiny_prompt(1, 5, seed=1)])
        options = {"max_new_tokens": 8, "do_sample": False, "suppress_tokens": [IMAGE]}
        expected = model.generate(**batch, **options)
        assert torch.equal(model.generate(**batch, **options, prompt_lookup_num_tokens=3), expected)

    def test_reports_the_backend(self, bits: int) -> None:
        with ops.use("reference"), ops.record() as usage:
            self.agree(bits)
        assert usage.backends()["cache"] == ["reference"]


class TestDeployedPass:
    def step(self, model: LlavaForConditionalGeneration, **options: object):
        with torch.no_grad():
            cache = model(**tiny_batch([tiny_prompt(1, 5, seed=1)])).past_key_values
            return model(input_ids=torch.tensor([[7]]), past_key_values=cache, **options)

    def test_never_makes_numbers_of_what_is_stored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = tiny_llava()
        attach_cache(model, QuantizationScheme())
        returned = []
        update = QuantizedLayer.update
        monkeypatch.setattr(
            QuantizedLayer, "update", lambda *args, **kwargs: returned.append(update(*args, **kwargs)) or returned[-1]
        )
        logits = self.step(model).logits
        prefill, step = returned[:5], returned[5:]
        assert all(keys.isfinite().all() for keys, _ in prefill)
        # A stand-in: right in shape, without memory, and fatal to whoever would read it.
        assert all(keys.shape == (1, 1, 24, 64) and keys.isnan().all() for keys, _ in step)
        assert all(keys.untyped_storage().nbytes() == 4 for keys, _ in step)
        assert logits.isfinite().all()

    def test_attention_weights_can_still_be_asked_for(self) -> None:
        model = tiny_llava("eager")
        attach_cache(model, QuantizationScheme())
        expected, asked = self.step(model), self.step(model, output_attentions=True)
        torch.testing.assert_close(asked.logits, expected.logits, atol=1e-4, rtol=0)
        assert [weights.shape for weights in asked.attentions] == [(1, 2, 1, 24)] * 5

    def test_a_mask_of_another_kind_is_left_to_the_users_attention(self) -> None:
        model = tiny_llava()
        attach_cache(model, QuantizationScheme())
        mask = torch.ones(1, 1, 1, 24, dtype=torch.bool)
        expected, masked = self.step(model), self.step(model, attention_mask=mask)
        torch.testing.assert_close(masked.logits, expected.logits, atol=1e-4, rtol=0)

    def test_leaves_the_users_choice_behind(self) -> None:
        model = tiny_llava("eager")
        attach_cache(model, QuantizationScheme())
        config, head = model.config.get_text_config(), model.model.language_model.layers[2].mlp
        seen = []
        hook = head.register_forward_pre_hook(lambda *_: seen.append(config._attn_implementation))
        self.step(model)
        assert seen == [attention.NAME] * 2 and config._attn_implementation == "eager"
        hook.remove()
        failing = head.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
        with pytest.raises(RuntimeError, match="memory"):
            self.step(model)
        assert config._attn_implementation == "eager"
        failing.remove()
        assert self.step(model).logits.isfinite().all()


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
        model = tiny_llava()
        config, layers = model.config.get_text_config(), family(model).decoder_layers
        indexed = DynamicCache()
        indexed.layers = [DynamicIndexedLayer()]
        filled = DynamicCache()
        filled.update(random(1, 1, 3, 64), random(1, 1, 3, 64), 0)
        for cache, reason in [
            (StaticCache(config=config, max_cache_len=8), "StaticCache"),
            (indexed, "DynamicIndexedLayer"),
            (filled, "new cache"),
        ]:
            with pytest.raises(QuotaError, match=reason):
                adopt(cache, layers, QuantizationScheme())

    def test_refuses_a_cache_under_another_scheme(self) -> None:
        cache, layers = DynamicCache(), family(tiny_llava()).decoder_layers
        adopt(cache, layers, QuantizationScheme())
        adopt(cache, layers, QuantizationScheme())
        with pytest.raises(QuotaError, match="another scheme"):
            adopt(cache, layers, None)


def test_packed_sequences_are_refused() -> None:
    """Without a cache transformers tells them apart by their positions; ours is there in every pass."""
    model = tiny_llava("sdpa")
    attach_cache(model, None)
    ids, positions = torch.tensor([[5, 6, 7, 8, 9]]), torch.tensor([[0, 1, 2, 0, 1]])
    with pytest.raises(QuotaError, match="pass them as a batch"):
        model(input_ids=ids, position_ids=positions, use_cache=False)
    assert model(input_ids=ids, position_ids=torch.arange(5)[None], use_cache=False).logits.isfinite().all()
