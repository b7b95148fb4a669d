"""What vLLM answers is what quota answers, what it keeps is what quota keeps, and requests do not feel each other."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
from support.engines import Beside, in_order, in_pairs, suite

import quota
from quota.prompts import answer

pytest.importorskip("vllm", reason="run by `make test-vllm`")


def check_answers_and_kept_tokens(engine: Beside, count: int) -> None:
    samples = suite(count)
    with engine.served.record() as traces:
        outputs = engine.generate(engine.prompts(samples))
    same = total = 0
    for sample, tokens, trace in zip(samples, outputs, in_order(traces), strict=True):
        with quota.record(engine.model) as own:
            assert tokens == engine.alone(sample)
        assert trace.tokens_per_layer == own.tokens_per_layer
        assert list(trace.kept) == list(own.kept) == [*engine.served.decoder.recipe.layers]
        for layer, chosen in own.kept.items():
            same += len(set(chosen[0].tolist()) & set(trace.kept[layer][0].tolist()))
            total += chosen.shape[1]
    assert same >= 0.99 * total


def test_answers_and_kept_tokens_are_those_of_quota(engine: Beside) -> None:
    check_answers_and_kept_tokens(engine, 36)


def test_many_at_once_answer_as_each_does_alone(engine: Beside) -> None:
    prompts: list[Any] = engine.prompts(in_pairs(suite(28)))
    prompts += [{"prompt": prompt["prompt"].replace("<image>", "")} for prompt in prompts[:4]]
    alone = [engine.generate([prompt])[0] for prompt in prompts]
    assert engine.generate(prompts) == alone


def test_two_pictures_are_cut_each_by_itself(engine: Beside) -> None:
    samples = [sample for sample in in_pairs(suite(9)) if isinstance(sample.image, tuple)]
    assert engine.texts(engine.generate(engine.prompts(samples))) == [
        answer(engine.model, engine.processor, sample) for sample in samples
    ]


def test_without_cuts_in_another_scheme_and_type(whole_folder: Path) -> None:
    engine = Beside(whole_folder, 16 << 20, dtype="auto")
    assert engine.served.decoder.recipe is None
    assert next(engine.served.parameters()).dtype == engine.model.dtype
    samples = suite(24)
    answers = engine.texts(engine.generate(engine.prompts(samples)))
    own = [answer(engine.model, engine.processor, sample) for sample in samples]
    assert sum(one == other for one, other in zip(answers, own, strict=True)) >= 23


# After those that share an engine: a second one takes from the first what vLLM has once in a process.
def test_tokens_are_chosen_by_attention(paper_folder: Path) -> None:
    gc.collect()
    check_answers_and_kept_tokens(Beside(paper_folder), 12)
