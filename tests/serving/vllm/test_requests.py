"""Blocks of a request, and what becomes of it when it is preempted or given up."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.engines import Beside, suite

from quota.evaluation.footprint import footprint

pytest.importorskip("vllm", reason="run by `make test-vllm`")

LONG = 60
"""Tokens of an answer that goes on behind its end."""


def test_blocks_are_those_of_kept_tokens(engine: Beside) -> None:
    names = engine.begin(suite(2), LONG)
    engine.step()
    try:
        managers = engine.scheduler.kv_cache_manager.coordinator.single_type_managers
        request = next(iter(engine.scheduler.requests))
        prompt = engine.scheduler.requests[request].num_prompt_tokens
        entering = engine.served.decoder.recipe.tokens_per_layer(144, 10)
        # A layer stores what goes on to the next one.
        stored = [prompt - 144 + left for left in [*entering[1:], entering[-1]]]
        groups = engine.scheduler.kv_cache_manager.kv_cache_config.kv_cache_groups
        blocks = {}
        for manager, group in zip(managers, groups, strict=True):
            for layer in group.layer_names:
                blocks[int(layer.split(".")[2])] = len(manager.req_to_blocks[request])
        assert [blocks[layer] for layer in range(10)] == [-(-tokens // 16) for tokens in stored]
    finally:
        engine.give_up(names)


def test_bytes_are_those_that_quota_says(engine: Beside) -> None:
    names = engine.begin(suite(1), LONG)
    engine.step()
    try:
        own = footprint(engine.model, engine.processor, suite(1)[0]).kv_bytes
        assert engine.bytes_in_use < 1.1 * own
    finally:
        engine.give_up(names)


def test_a_request_that_is_given_up_leaves_nothing(engine: Beside) -> None:
    names = engine.begin(suite(8), LONG)
    engine.step()
    assert engine.bytes_in_use > 0
    engine.give_up(names[:7])
    while engine.llm.llm_engine.has_unfinished_requests():
        engine.step()
    assert engine.bytes_in_use == 0
    assert not engine.scheduler.requests


def test_a_preempted_request_goes_on_as_if_nothing_had_been(engine: Beside, reference_folder: Path) -> None:
    prompts = engine.prompts(suite(6))
    expected = engine.generate(prompts, LONG, ignore_eos=True)
    # Room for the prompts, and not for all answers.
    narrow = Beside(reference_folder, max_model_len=256, num_gpu_blocks_override=260, max_num_seqs=6)
    preempted = []
    preempt = narrow.scheduler._preempt_request
    narrow.scheduler._preempt_request = lambda request, *args, **kwargs: (
        preempted.append(request.num_output_tokens),
        preempt(request, *args, **kwargs),
    )
    assert narrow.generate(prompts, LONG, ignore_eos=True) == expected
    assert any(preempted), "nobody was preempted while it answered: make the cache smaller"
