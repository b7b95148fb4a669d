"""What a prompt costs, against arithmetic done by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny_llava import LAYERS, VISUAL_TOKENS, make_samples
from transformers import LlamaConfig

from quota.checkpoint.named import load_model
from quota.evaluation import footprint
from quota.evaluation.footprint import disk_bytes
from quota.prompts import build_inputs
from quota.pruning.recipe import PruningRecipe
from quota.pruning.schedule import prefill_flops_ratio

HEADS, HEAD = 2, 16


def text_tokens(processor, sample) -> int:
    return build_inputs(processor, [sample])["input_ids"].shape[1] - VISUAL_TOKENS


def test_an_unpruned_float_cache_counts_two_bytes_a_number(full_model, tiny_processor) -> None:
    [sample] = make_samples(1)
    cost = footprint(full_model, tiny_processor, sample)
    tokens = VISUAL_TOKENS + text_tokens(tiny_processor, sample)
    assert cost.visual_tokens_per_layer == [VISUAL_TOKENS] * LAYERS
    assert cost.kv_bytes == 2 * 2 * tokens * HEADS * HEAD * LAYERS


def test_a_pruned_quantised_cache_holds_kept_tokens_in_half_bytes(quota_folder: Path) -> None:
    model, processor, _ = load_model(str(quota_folder))
    [sample] = make_samples(1)
    recipe = PruningRecipe.load(quota_folder / "recipe.json")
    cost = footprint(model, processor, sample)
    assert cost.visual_tokens_per_layer == recipe.tokens_per_layer(VISUAL_TOKENS, LAYERS)

    # A candidate layer's own cache is cut too: it holds what enters the next layer.
    held = [*cost.visual_tokens_per_layer[1:], cost.visual_tokens_per_layer[-1]]
    tokens = sum(held) + LAYERS * text_tokens(processor, sample)
    scale_and_zero, position = 2 * 2, 4
    per_token = 2 * HEADS * (HEAD // 2 + scale_and_zero) + position
    assert cost.kv_bytes == tokens * per_token

    model.quota_pruner.detach()
    unpruned = footprint(model, processor, sample)
    assert unpruned.kv_bytes == LAYERS * (VISUAL_TOKENS + text_tokens(processor, sample)) * per_token


def test_prefill_flops_of_a_published_schedule() -> None:
    """LLaVA-1.5-7B, layers 2 to 6, the keep counts of tests/allocation/test_paper.py; the paper states 40.89%."""
    llama = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_attention_heads=32, num_hidden_layers=32)
    tokens = [576, 576, 576, 524, 441, 359, 274] + [173] * 25
    assert prefill_flops_ratio(tokens, 576, llama) == pytest.approx(0.4089, abs=0.005)
    assert prefill_flops_ratio([576] * 32, 576, llama) == 1.0


def test_grouped_queries_cost_less_than_full_heads() -> None:
    """All tokens in one layer and half in the next, by hand: 4 query heads and 2 key heads of 8 channels."""
    config = LlamaConfig(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2)
    per_token = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64

    def work(tokens: int) -> int:
        return tokens * per_token + 2 * tokens * tokens * 32

    assert prefill_flops_ratio([10, 5], 10, config) == pytest.approx((work(10) + work(5)) / (2 * work(10)))
    # Tokens may be dropped before the first layer.
    assert prefill_flops_ratio([5, 5, 5], 10, config) == pytest.approx(work(5) / work(10))


def test_disk_bytes_are_weights_and_recipe(tmp_path: Path) -> None:
    for name, size in {
        "model-1.safetensors": 10,
        "model-2.safetensors": 5,
        "recipe.json": 3,
        "config.json": 99,
    }.items():
        (tmp_path / name).write_bytes(b"x" * size)
    assert disk_bytes(tmp_path) == 18
