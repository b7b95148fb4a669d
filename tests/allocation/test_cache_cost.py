"""Bytes of the KV cache by the schedule, against the bytes of caches that were filled under it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.tiny_llava import LAYERS, VISUAL_TOKENS, make_model, make_samples, processor

from quota.allocation.cache_cost import CacheCost, cache_cost
from quota.allocation.clock import attached
from quota.allocation.drops import schedule_recipe
from quota.attention.hook import attach_cache
from quota.attention.size import cache_bytes
from quota.checkpoint.named import load_model
from quota.errors import QuotaError
from quota.prompts import build_inputs
from quota.pruning.pruner import Pruner
from quota.pruning.schedule import Schedule
from quota.scheme import QuantizationScheme

SCHEDULES = [Schedule(), Schedule((-1,), (0.25,)), Schedule((0, 2), (0.5, 0.2)), Schedule((LAYERS - 1,), (0.1,))]


@pytest.mark.parametrize("bits", [4, 2, None], ids=["4 bits", "2 bits", "not quantised"])
def test_it_is_what_the_cache_holds(bits: int | None) -> None:
    scheme = None if bits is None else QuantizationScheme(weight_bits=16, activation_bits=16, kv_bits=bits)
    model, inputs = make_model(), build_inputs(processor(), make_samples(1))
    attach_cache(model, scheme)
    cost = cache_cost(model, inputs, VISUAL_TOKENS)
    for schedule in SCHEDULES:
        pruners = []
        if schedule.layers:
            pruners = [Pruner(model, schedule_recipe(model, schedule, VISUAL_TOKENS, scheme, "information"), scheme)]
        with attached(pruners), torch.no_grad():
            filled = model(**inputs, use_cache=True).past_key_values
        assert cost.bytes(schedule, VISUAL_TOKENS, LAYERS) == pytest.approx(cache_bytes(filled), abs=1e-6)


def test_keys_with_a_centre_count_their_turns(quota_folder: Path) -> None:
    model, _, _ = load_model(str(quota_folder))
    recipe, cost = model.quota_pruner.recipe, model.quota_measurements.cache
    inputs = build_inputs(processor(), [model.quota_measurements.prompt.sample()])
    with torch.no_grad():
        filled = model(**inputs, use_cache=True).past_key_values
    assert cost.bytes(recipe.schedule, VISUAL_TOKENS, LAYERS) == pytest.approx(cache_bytes(filled))


def test_what_a_budget_leaves_for_visual_tokens() -> None:
    cost = CacheCost(rest=1000.0, token=60.0)
    assert cost.bytes(Schedule(), 16, 6) == 1000 + 16 * 60
    limit = cost.limit(1480, 16, 6)
    assert limit.allows(Schedule((-1,), (0.5,)), 16, 6)
    assert not limit.allows(Schedule((-1,), (9 / 16,)), 16, 6)
    # Caches of 16, 16, 4, 4, 4 and 4 tokens: 48, as six of 8.
    assert limit.allows(Schedule((2,), (4 / 16,)), 16, 6)
    assert not limit.allows(Schedule((3,), (4 / 16,)), 16, 6)
    with pytest.raises(QuotaError, match=r"900 bytes is out of reach: .* takes 1,000 without .* and 1,960 with all"):
        cost.limit(900, 16, 6)
