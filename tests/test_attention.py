"""Attention cues: sums of attention without the attention matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import IMAGE, tiny_batch, tiny_llava, tiny_prompt

from quota import attention
from quota.attention import Observation, attention_sums, naive_attention_sums, observe


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 2),
    shared=st.integers(1, 3),
    queries=st.integers(1, 9),
    past=st.integers(0, 4),
    chunk=st.integers(1, 200),
    seed=st.integers(0, 999),
)
def test_equals_the_naive_version(
    batch: int, groups: int, shared: int, queries: int, past: int, chunk: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, groups * shared, queries, 8, generator=generator)
    key = torch.randn(batch, groups, past + queries, 8, generator=generator)
    keys = torch.rand(batch, past + queries, generator=generator) < 0.8
    rows = torch.rand(batch, 2, queries, generator=generator) < 0.5
    # A query that sees no key has no attention to give.
    sees = (keys[:, None] & torch.ones(queries, past + queries, dtype=torch.bool).tril(past)).any(dim=-1)
    rows &= sees[:, None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_CHUNK", chunk)
        sums = attention_sums(query, key, 0.3, rows, keys)
    torch.testing.assert_close(sums, naive_attention_sums(query, key, 0.3, rows, keys), atol=1e-5, rtol=0)
    # Every row of attention adds up to one, and nothing goes to a masked key.
    torch.testing.assert_close(sums.sum(dim=-1), rows.sum(dim=-1).float(), atol=1e-4, rtol=0)
    assert not sums.masked_select(~keys[:, None]).any()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_sees_the_attention_of_the_model(implementation: str) -> None:
    """Against the attention weights that eager attention returns, left padding and grouped heads included."""
    batch = tiny_batch([tiny_prompt(1, 3, seed=1), tiny_prompt(1, 9, seed=2)])
    with torch.no_grad():
        weights = tiny_llava("eager", heads=4, kv_heads=2)(**batch, output_attentions=True).attentions
    model = tiny_llava(implementation, heads=4, kv_heads=2)
    valid = batch["attention_mask"].bool()
    visual = batch["input_ids"] == IMAGE
    config, layer = model.config.get_text_config(), model.model.language_model.layers[2]
    observation = Observation(text=valid & ~visual, visual=visual, keys=valid)
    expected = {}
    with torch.no_grad():
        unobserved = model(**batch).logits
        forward = layer.forward

        def observed(*args: object, **kwargs: object) -> object:
            with observe(config, observation):
                return forward(*args, **kwargs)

        layer.forward = observed
        assert torch.equal(model(**batch).logits, unobserved)
    average = weights[2].mean(dim=1)
    for name, rows in {"inter": observation.text, "intra": observation.visual}.items():
        expected[name] = (average * rows[..., None]).sum(dim=1)
        measured = getattr(observation, name)
        torch.testing.assert_close(measured[valid], expected[name][valid], atol=1e-5, rtol=0)
    assert config._attn_implementation == implementation


def test_the_implementation_comes_back_after_an_error() -> None:
    config = tiny_llava().config.get_text_config()
    nothing = torch.zeros(1, 1, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="inside"), observe(config, Observation(nothing, nothing, nothing)):
        assert config._attn_implementation == attention.NAME
        raise RuntimeError("inside")
    assert config._attn_implementation == "sdpa"
