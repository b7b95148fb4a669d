"""Masks that are not causal, against the rule written out pair by pair."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.families import TINY
from support.pruned import recipe_for
from torch import Tensor

from quota import ops
from quota.attention.function import observe
from quota.attention.hook import attach_cache
from quota.attention.masks import allowed_pairs, as_attention_mask, as_truth
from quota.attention.observation import Observation
from quota.calibration.blocks import capture, run
from quota.errors import QuotaError
from quota.models import family
from quota.pruning.pruner import Pruner


def positions(seed: int, length: int, count: int) -> Tensor:
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed))[:count].sort().values


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.booleans(), st.sampled_from([None, 1, 4, 20]))
def test_allowed_pairs_follow_the_rule(seed: int, with_blocks: bool, window: int | None) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries, keys = positions(seed, 12, 5)[None], positions(seed + 1, 12, 8)[None]
    present = torch.rand(1, 8, generator=generator) < 0.8
    blocks = torch.randint(-1, 3, (1, 12), generator=generator) if with_blocks else None
    found = allowed_pairs(queries, keys, present, blocks, window)
    for row, q in enumerate(queries[0].tolist()):
        for column, k in enumerate(keys[0].tolist()):
            together = blocks is not None and blocks[0, q] == blocks[0, k] and blocks[0, q] >= 0
            expected = present[0, column] and (k <= q or together) and (window is None or k > q - window)
            assert bool(found[0, row, column]) == bool(expected)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_both_kinds_of_masks_say_the_same(implementation: str) -> None:
    config = TINY["Gemma3ForConditionalGeneration"].build(implementation).config.get_text_config()
    allowed = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(0)) < 0.5
    mask = as_attention_mask(allowed, config, torch.float32)
    assert mask.dtype == (torch.bool if implementation == "sdpa" else torch.float32)
    assert torch.equal(as_truth(mask)[:, 0], allowed)


class TestRefused:
    @pytest.mark.parametrize("name", ["Gemma3ForConditionalGeneration", "PaliGemmaForConditionalGeneration"])
    def test_an_attention_that_takes_no_such_mask(self, name: str) -> None:
        tiny = TINY[name]
        model = tiny.build()
        Pruner(model, recipe_for(model)).attach()
        model.config.get_text_config()._attn_implementation = "flash_attention_2"
        with pytest.raises(QuotaError, match=r"not causal.*sdpa"):
            family(model).text_model(inputs_embeds=torch.zeros(1, 3, 64), attention_mask=torch.zeros(1, 1, 3, 3))

    def test_a_backend_with_causal_attention_only(self) -> None:
        with ops.use("torch"), pytest.raises(QuotaError, match="has no attention with a mask for each query"):
            ops.for_attention(torch.device("cpu"), pairs=True)

    def test_a_static_cache(self) -> None:
        tiny = TINY["Gemma3ForConditionalGeneration"]
        model = tiny.build()
        attach_cache(model, None)
        with pytest.raises(QuotaError, match="dynamic"):
            model.generate(**tiny.batch([tiny.prompt([0])]), max_new_tokens=2, cache_implementation="static")


def test_the_backend_is_named() -> None:
    with ops.record() as used:
        assert ops.for_attention(torch.device("cpu"), pairs=True).name == "reference"
    assert ("attention", "reference") in used.calls
    assert any("has no attention with a mask for each query" in lack for lack in used.lacking)


def test_observed_attention_follows_the_mask() -> None:
    """What each token receives, in a layer whose image tokens see one another, from the weights of eager attention."""
    tiny = TINY["PaliGemmaForConditionalGeneration"]
    batch = tiny.batch([tiny.prompt([0], 4, seed=1)])
    model = tiny.build("eager")
    parts = family(model)
    visual = parts.visual_mask(batch["input_ids"])
    observation = Observation(text=~visual, visual=visual, keys=torch.ones_like(visual))
    with torch.no_grad():
        expected = model(**batch, output_attentions=True).attentions[2].mean(dim=1)
        hidden, beside = capture(model, parts.decoder_layers, batch)
        for layer, one in zip(parts.decoder_layers[:2], beside, strict=False):
            hidden = run(layer, hidden, one)
        with observe(parts.text_model.config, observation, causal=False):
            run(parts.decoder_layers[2], hidden, beside[2])
    assert observation.inter is not None and observation.intra is not None
    torch.testing.assert_close(observation.inter[0], expected[0][~visual[0]].sum(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(observation.intra[0], expected[0][visual[0]].sum(0), atol=1e-5, rtol=0)
