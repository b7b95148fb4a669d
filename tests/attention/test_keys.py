"""Keys are centred and balanced in front of the cache: attention does not notice, the quantiser does."""

from __future__ import annotations

import copy

import pytest
import torch
from support.tiny import tiny_batch, tiny_llava, tiny_prompt
from torch import Tensor

from quota.attention.cache import new_layer
from quota.attention.hook import attach_cache
from quota.attention.keys import NAME, KeyTransform, key_transforms
from quota.attention.moments import KeyMoments, watch
from quota.models import family
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


def test_attention_does_not_change() -> None:
    keys, query = keys_and_queries(seed=9)
    transform = learned()
    seen = attention(transform.queries(query), transform(keys))
    torch.testing.assert_close(seen, attention(query, keys), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(attention(query, transform.undo(transform(keys))), seen, rtol=1e-3, atol=1e-4)


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
    keys, query = keys_and_queries()
    identity = KeyTransform(HEADS, WIDTH)
    assert torch.equal(identity(keys), keys) and torch.equal(identity.queries(query), query)


def test_the_inverse_follows_the_matrix() -> None:
    transform = KeyTransform(HEADS, WIDTH)
    transform.inverse()
    transform.matrix.mul_(2)
    torch.testing.assert_close(transform.inverse(), transform.matrix / 4)
    transform.matrix = torch.eye(WIDTH).repeat(HEADS, 1, 1) * 4
    torch.testing.assert_close(transform.inverse(), transform.matrix / 16)
