"""Attention cues: sums of attention without the attention matrix."""

from __future__ import annotations

import pytest
import torch
from support.tiny import IMAGE, tiny_batch, tiny_llava, tiny_prompt
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from quota.attention import function as attention
from quota.attention.function import observe
from quota.attention.hook import attach_cache
from quota.attention.observation import Observation
from quota.scheme import QuantizationScheme


def observed(
    model: LlavaForConditionalGeneration, index: int, observation: Observation, batch: dict[str, Tensor]
) -> Tensor:
    """Logits of a pass in which decoder layer `index` is observed."""
    layer = model.model.language_model.layers[index]
    forward = layer.forward

    def under_observation(*args: object, **kwargs: object) -> object:
        with observe(model.config.get_text_config(), observation):
            return forward(*args, **kwargs)

    layer.forward = under_observation
    try:
        return model(**batch).logits
    finally:
        layer.forward = forward


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_sees_the_attention_of_the_model(implementation: str) -> None:
    """Against the attention weights that eager attention returns, left padding and grouped heads included."""
    batch = tiny_batch([tiny_prompt(1, 3, seed=1), tiny_prompt(1, 9, seed=2)])
    with torch.no_grad():
        weights = tiny_llava("eager", heads=4, kv_heads=2)(**batch, output_attentions=True).attentions
    model = tiny_llava(implementation, heads=4, kv_heads=2)
    valid = batch["attention_mask"].bool()
    visual = batch["input_ids"] == IMAGE
    config = model.config.get_text_config()
    observation = Observation(text=valid & ~visual, visual=visual, keys=valid)
    expected = {}
    with torch.no_grad():
        assert torch.equal(observed(model, 2, observation, batch), model(**batch).logits)
    average = weights[2].mean(dim=1)
    for name, rows in {"inter": observation.text, "intra": observation.visual}.items():
        expected[name] = (average * rows[..., None]).sum(dim=1)
        measured = getattr(observation, name)
        torch.testing.assert_close(measured[valid], expected[name][valid], atol=1e-5, rtol=0)
    assert config._attn_implementation == implementation


def test_a_scorer_that_asks_nothing_of_attention_leaves_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(attention, "attend")
    batch, model = tiny_batch([tiny_prompt(1, 3, seed=1)]), tiny_llava()
    valid, visual = batch["attention_mask"].bool(), batch["input_ids"] == IMAGE
    observation = Observation(text=valid & ~visual, visual=visual, keys=valid, wanted=("budget", "risk"))
    with torch.no_grad():
        assert torch.equal(observed(model, 2, observation, batch), model(**batch).logits)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_over_a_quantised_cache_output_and_sums_are_of_one_softmax(implementation: str) -> None:
    batch = tiny_batch([tiny_prompt(1, 3, seed=1), tiny_prompt(1, 9, seed=2)])
    model = tiny_llava(implementation, heads=4, kv_heads=2)
    attach_cache(model, QuantizationScheme())
    valid = batch["attention_mask"].bool()
    visual = batch["input_ids"] == IMAGE
    config = model.config.get_text_config()
    observation = Observation(text=valid & ~visual, visual=visual, keys=valid)
    with torch.no_grad():
        assert torch.equal(observed(model, 2, observation, batch), model(**batch).logits)
    assert config._attn_implementation == implementation
    for sums, rows in ((observation.inter, observation.text), (observation.intra, observation.visual)):
        assert sums is not None
        torch.testing.assert_close(sums.sum(dim=1), rows.sum(dim=1).float(), atol=1e-4, rtol=0)
        assert not sums[~valid].any()


def test_the_implementation_comes_back_after_an_error() -> None:
    config = tiny_llava().config.get_text_config()
    nothing = torch.zeros(1, 1, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="inside"), observe(config, Observation(nothing, nothing, nothing)):
        assert config._attn_implementation == attention.NAME
        raise RuntimeError("inside")
    assert config._attn_implementation == "sdpa"
