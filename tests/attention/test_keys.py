"""Keys are centred and balanced in front of the cache: attention does not notice, the quantiser does."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from support.tiny import tiny_batch, tiny_llava, tiny_prompt
from torch import Tensor

from quota.attention.cache import new_layer
from quota.attention.hook import attach_cache
from quota.attention.keys import NAME, KeyTransform, key_transforms
from quota.attention.moments import KeyMoments, watch
from quota.models import family
from quota.ops.hadamard import block_hadamard
from quota.scheme import QuantizationScheme

HEADS, WIDTH = 2, 64


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def keys_and_queries(tokens: int = 48, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Keys [1, 2, T, 64] with a constant part and channels of unequal size, queries [1, 4, T, 64]."""
    size = torch.exp(random(HEADS, 1, WIDTH, seed=1))
    keys = random(1, HEADS, tokens, WIDTH, seed=seed) * size + 6 * random(HEADS, 1, WIDTH, seed=2)
    return keys, random(1, 2 * HEADS, tokens, WIDTH, seed=seed + 1) / size.repeat_interleave(2, 0)


def learned() -> KeyTransform:
    moments = KeyMoments()
    for seed in range(4):
        query, key = keys_and_queries(seed=seed)[::-1]
        moments.add(query, key)
    transform = moments.transform()
    assert transform is not None
    return transform


def attention(query: Tensor, keys: Tensor) -> Tensor:
    return (query @ keys.repeat_interleave(2, 1).transpose(-1, -2)).softmax(-1)


@pytest.mark.parametrize("hadamard", [0, 16, 64])
def test_attention_does_not_change(hadamard: int) -> None:
    keys, query = keys_and_queries(seed=9)
    transform = learned().operand()
    mapped, folded = transform.apply(keys), transform.folded(hadamard)
    expected = attention(query, keys)
    torch.testing.assert_close(attention(query, transform.undo(mapped)), expected, rtol=1e-3, atol=1e-4)
    stored = keys @ folded.into + folded.offset.unsqueeze(1)
    torch.testing.assert_close(stored, block_hadamard(mapped, hadamard), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(stored @ folded.back, keys - transform.center.unsqueeze(1), rtol=1e-4, atol=1e-4)
    met = query @ folded.back.mT.repeat_interleave(2, 0)
    torch.testing.assert_close(attention(met, stored), expected, rtol=1e-3, atol=1e-4)


def test_a_quantised_cache_scores_more_exactly_with_it() -> None:
    keys, query = keys_and_queries(seed=9)
    errors = []
    for transform in (None, learned()):
        stored, _ = new_layer(QuantizationScheme(), transform).update(keys, keys)
        # Centred, as attention does not see what all scores of a query have in common.
        score, expected = (query @ k.repeat_interleave(2, 1).transpose(-1, -2) for k in (stored, keys))
        error = score - expected
        errors.append(float((error - error.mean(-1, keepdim=True)).norm()))
    assert errors[1] < errors[0] / 2


def test_moments_are_those_of_the_attention_call() -> None:
    model = tiny_llava(heads=2, kv_heads=1)
    batch = tiny_batch([tiny_prompt(1, 5, seed=1)])
    with torch.no_grad():
        expected = model(**batch, use_cache=True)
        with watch(model.config.get_text_config(), KeyMoments()) as moments:
            watched = model(**batch)
    assert torch.equal(watched.logits, expected.logits)
    keys = torch.cat([layer.keys for layer in expected.past_key_values.layers], dim=2)[0, 0]
    assert moments.tokens == len(keys)
    transform = moments.transform()
    assert transform is not None
    torch.testing.assert_close(transform.center[0], keys.mean(0), rtol=1e-2, atol=1e-2)


def test_nothing_watched_is_no_transform() -> None:
    assert KeyMoments().transform() is None


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_packed_and_unpacked_decoding_agree(implementation: str) -> None:
    model = tiny_llava(implementation, heads=4, kv_heads=2)
    for layer in family(model).decoder_layers:
        layer.self_attn.add_module(NAME, copy.deepcopy(learned()))
    assert all(key_transforms(family(model).decoder_layers))
    attach_cache(model, QuantizationScheme())
    batch = tiny_batch([tiny_prompt(1, 5, seed=1), tiny_prompt(1, 9, seed=2)])
    options = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    packed = model.generate(**batch, **options)
    numbers = model.generate(**batch, **options, output_attentions=implementation == "eager")
    torch.testing.assert_close(torch.stack(packed.logits), torch.stack(numbers.logits), atol=1e-3, rtol=0)


def test_the_identity_leaves_keys_as_they_are() -> None:
    keys, _ = keys_and_queries()
    identity = KeyTransform(HEADS, WIDTH).operand()
    assert torch.equal(identity.apply(keys), keys) and torch.equal(identity.undo(keys), keys)


def test_the_operand_follows_the_buffers() -> None:
    transform = KeyTransform(HEADS, WIDTH)
    assert transform.operand() is transform.operand()
    transform.operand().folded(64)
    transform.matrix.mul_(2)
    torch.testing.assert_close(transform.operand().inverse, transform.matrix / 4)
    transform.matrix = torch.eye(WIDTH).repeat(HEADS, 1, 1) * 4
    torch.testing.assert_close(transform.operand().folded(0).back, transform.matrix / 16)
    transform.matrix.data = torch.eye(WIDTH).repeat(HEADS, 1, 1) * 4
    torch.testing.assert_close(transform.operand().folded(0).back, transform.matrix / 16)
    transform.center.add_(1)
    torch.testing.assert_close(transform.operand().folded(0).offset, torch.full((HEADS, WIDTH), -4.0))


def test_a_transform_that_was_used_can_be_copied_and_pickled() -> None:
    keys, _ = keys_and_queries()
    transform = learned()
    expected = new_layer(QuantizationScheme(), transform).update(keys, keys)[0]
    for other in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        assert torch.equal(new_layer(QuantizationScheme(), other).update(keys, keys)[0], expected)


def test_a_copied_cache_goes_on_by_itself() -> None:
    keys, _ = keys_and_queries()
    layer = new_layer(QuantizationScheme(), learned())
    layer.update(keys[:, :, :40], keys[:, :, :40])
    layer.update(keys[:, :, 40:41], keys[:, :, 40:41])
    other = copy.deepcopy(layer)
    changed = other.update(-keys[:, :, 41:44], -keys[:, :, 41:44])[0]
    returned = layer.update(keys[:, :, 41:44], keys[:, :, 41:44])[0]
    assert torch.equal(changed[:, :, :41], returned[:, :, :41])
    assert not torch.equal(changed[:, :, 41:], returned[:, :, 41:])


def test_the_first_use_may_be_in_inference_mode() -> None:
    keys, _ = keys_and_queries()
    transform = learned()
    with torch.inference_mode():
        expected = new_layer(QuantizationScheme(), transform).update(keys, keys)[0].clone()
    found = new_layer(QuantizationScheme(), transform).update(keys.clone().requires_grad_(), keys)[0]
    assert torch.equal(found, expected)


def test_a_later_turn_reads_what_the_first_one_read() -> None:
    keys, _ = keys_and_queries()
    transform = learned()
    layer = new_layer(QuantizationScheme(), transform)
    first = layer.update(keys[:, :, :40], keys[:, :, :40])
    both = layer.update(keys[:, :, 40:], keys[:, :, 40:])
    at_once = new_layer(QuantizationScheme(), transform).update(keys, keys)
    for part, later, whole in zip(first, both, at_once, strict=True):
        assert torch.equal(later[:, :, :40], part) and torch.equal(later, whole)
