"""Centres of keys before RoPE: token by token, in a cache of any history, and in a whole model."""

from __future__ import annotations

import copy

import pytest
import torch
from support.families import TINY
from support.tiny_text import VOCABULARY, make_qwen2
from torch import Tensor
from transformers import DynamicCache, Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from quota.attention.cache import QuantizedLayer, new_layer, say_turns
from quota.attention.hook import attach_cache
from quota.attention.keys import KeyTransform
from quota.attention.turns import turn_table, turned, turned_logits
from quota.calibration.sweep import calibrate
from quota.errors import QuotaError
from quota.models import family
from quota.scheme import QuantizationScheme

KV4 = QuantizationScheme(weight_bits=16, activation_bits=16)
KV8 = QuantizationScheme(weight_bits=16, activation_bits=16, kv_bits=8)
HEADS, WIDTH = 2, 16


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def angles(batch: int, tokens: int) -> tuple[Tensor, Tensor]:
    """cos and sin [B, T, D], other ones for every sample."""
    angle = torch.arange(tokens)[:, None] * 10000 ** -torch.linspace(0, 1, WIDTH // 2)
    angle = torch.cat([angle, angle], dim=-1) + torch.arange(batch)[:, None, None]
    return angle.cos(), angle.sin()


def transform(center: Tensor) -> KeyTransform:
    made = KeyTransform(*center.shape, turning=True)
    made.turning = center
    return made


def filled(center: Tensor, keys: Tensor, values: Tensor) -> QuantizedLayer:
    """A cache layer that has taken up keys [B, G, T, D] in one pass."""
    cache = cache_of(center)
    say_turns(cache, len(keys), *angles(len(keys), keys.shape[2]))
    cache.layers[0].update(keys, values)
    return cache.layers[0]


def cache_of(center: Tensor) -> DynamicCache:
    cache = DynamicCache()
    cache.layers[:] = [new_layer(KV4, transform(center))]
    return cache


def test_a_centre_turns_as_a_key_does() -> None:
    center, (cos, sin) = random(HEADS, WIDTH), angles(2, 7)
    _, expected = apply_rotary_pos_emb(torch.zeros(1), center.view(1, HEADS, 1, WIDTH), cos, sin)
    torch.testing.assert_close(turned(center, turn_table(cos, sin)), expected)


def test_logits_are_those_of_every_token() -> None:
    center, table, query = random(HEADS, WIDTH), turn_table(*angles(2, 7)), random(2, 3 * HEADS, 1, WIDTH, seed=1)
    found, keys = turned_logits(query, center, table), turned(center, table)
    for sample in range(2):
        for head in range(3 * HEADS):
            for token in range(7):
                expected = query[sample, head, 0] @ keys[sample, head // 3, token]
                torch.testing.assert_close(found[sample, head, token], expected)


def test_keys_that_are_all_centre_are_exact() -> None:
    center = 100 * random(HEADS, WIDTH)
    keys = turned(center, turn_table(*angles(2, 9)))
    layer = filled(center, keys, keys)
    assert torch.equal(layer.update(keys[:, :, :0], keys[:, :, :0])[0], keys)


@pytest.mark.parametrize("history", ["as it came", "cut", "ragged", "beams", "cropped"])
def test_a_query_reads_what_is_read_as_numbers(history: str) -> None:
    center, query = 30 * random(HEADS, WIDTH), random(2, 2 * HEADS, 1, WIDTH, seed=1) / 30
    keys = random(2, HEADS, 9, WIDTH, seed=2) + turned(center, turn_table(*angles(2, 9)))
    layer = filled(center, keys, random(2, HEADS, 9, WIDTH, seed=3))
    if history == "cut":
        kept = torch.tensor([1, 0, 1, 1, 0, 1, 0, 0, 1]).bool().expand(2, -1)
        layer.keep(kept)
        keys = keys[:, :, kept[0]]
    elif history == "ragged":
        kept = torch.tensor([[1, 0, 1, 1, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 1, 1, 0, 1]]).bool()
        layer.keep(kept)
        keys = torch.stack([keys[0][:, kept[0]], torch.cat([keys[1][:, :2], keys[1][:, kept[1]]], dim=1)])
    elif history == "beams":
        layer.reorder_cache(torch.tensor([1, 1]))
        keys = keys[[1, 1]]
    elif history == "cropped":
        layer.crop(-3)
        keys = keys[:, :, :6]
    valid = layer.valid(None)
    read, values = layer.update(keys[:, :, :0], keys[:, :, :0])
    error = (read - keys).masked_fill(~valid[:, None, :, None], 0)
    assert error.abs().max() < 0.5
    found = layer.attend(query, valid, 0.25)
    for sample in range(2):
        for head in range(2 * HEADS):
            key, value = (part[sample, head // 2, valid[sample]] for part in (read, values))
            expected = (key @ query[sample, head, 0] * 0.25).softmax(dim=0) @ value
            torch.testing.assert_close(found[sample, head, 0], expected, atol=1e-4, rtol=0)


def test_a_layer_that_is_not_told_refuses() -> None:
    keys = random(1, HEADS, 3, WIDTH)
    with pytest.raises(QuotaError, match="nobody said how far they turn"):
        new_layer(KV4, transform(random(HEADS, WIDTH))).update(keys, keys)


def test_layers_share_one_table() -> None:
    cache, keys = cache_of(random(HEADS, WIDTH)), random(1, HEADS, 5, WIDTH)
    cache.layers.append(new_layer(KV4, transform(random(HEADS, WIDTH))))
    for _ in range(2):
        say_turns(cache, 1, *angles(1, 5))
        for layer in cache.layers:
            layer.update(keys, keys)
    first, second = cache.layers
    assert first.turns is second.turns
    plain = new_layer(KV4)
    plain.update(keys, keys)
    plain.update(keys, keys)
    assert first.nbytes() + second.nbytes() == 2 * plain.nbytes() + 10 * WIDTH * 4


def windows(count: int, seed: int) -> Tensor:
    return torch.randint(1, VOCABULARY, (count, 48), generator=torch.Generator().manual_seed(seed))


def quantized() -> Qwen2ForCausalLM:
    """With a cache of 4 bits, and all else as it is."""
    model = make_qwen2()
    calibrate(model, [{"input_ids": window[None]} for window in windows(8, seed=1)], KV4)
    attach_cache(model, KV4)
    return model


@torch.no_grad()
def test_a_model_with_a_large_bias_errs_half_as_much(monkeypatch) -> None:
    ids = windows(4, seed=2)
    exact = make_qwen2()(input_ids=ids).logits
    errors = [(quantized()(input_ids=ids).logits - exact).norm() / exact.norm()]
    # With a centre behind RoPE alone.
    monkeypatch.setattr("quota.calibration.sweep.key_bias", lambda attention, heads: None)
    errors.append((quantized()(input_ids=ids).logits - exact).norm() / exact.norm())
    assert errors[0] < 0.6 * errors[1]


@torch.no_grad()
def test_decoding_a_padded_batch_is_a_prefill_of_all() -> None:
    model = quantized()
    ids, mask = windows(2, seed=3)[:, :20], torch.ones(2, 20, dtype=torch.long)
    mask[1, :7] = 0
    options = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    made = model.generate(input_ids=ids, attention_mask=mask, **options)
    whole = torch.cat([mask, torch.ones(2, 5, dtype=torch.long)], dim=1)
    positions = (whole.cumsum(dim=1) - 1).clamp(min=0)
    expected = model(input_ids=made.sequences, attention_mask=whole, position_ids=positions).logits[:, 19:-1]
    torch.testing.assert_close(torch.stack(made.logits, dim=1), expected, atol=2e-3, rtol=0)
    beams = model.generate(input_ids=ids, attention_mask=mask, num_beams=3, max_new_tokens=5)
    copied = copy.deepcopy(model).generate(input_ids=ids, attention_mask=mask, num_beams=3, max_new_tokens=5)
    assert torch.equal(beams, copied)


@torch.no_grad()
def test_three_positions_a_token() -> None:
    tiny = TINY["Qwen2VLForConditionalGeneration"]
    exact, model = (tiny.build("eager") for _ in range(2))
    for each in (exact, model):
        for layer in family(each).decoder_layers:
            layer.self_attn.k_proj.bias.copy_(20 * random(*layer.self_attn.k_proj.bias.shape))
    calibrate(model, [tiny.batch([tiny.prompt([size], 9, seed=1)]) for size in tiny.sizes], KV8)
    attach_cache(model, KV8)
    batch = tiny.batch([tiny.prompt([tiny.sizes[0]], 5, seed=1), tiny.prompt([tiny.sizes[1]], 3, seed=2)])
    seen = batch["attention_mask"].bool()
    expected = exact(**batch).logits[seen]
    assert (model(**batch).logits[seen] - expected).norm() < 0.02 * expected.norm()
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    packed = model.generate(**batch, **options)
    numbers = model.generate(**batch, **options, output_attentions=True)
    torch.testing.assert_close(torch.stack(packed.logits), torch.stack(numbers.logits), atol=2e-2, rtol=0)
