"""What a model answers does not depend on how many questions it is asked at once."""

from __future__ import annotations

from pathlib import Path

import pytest

import quota
from quota.checkpoint.named import load_model
from quota.prompts import build_inputs, decode, generate
from quota.samples import first_of_each_task, read_samples
from quota_lab import reference

pytestmark = pytest.mark.slow

QUESTIONS = 200


def test_batches_of_four_give_the_answers_of_single_questions(reference_folder: Path) -> None:
    """At W4A4KV4 and 30%, on the reference suite: questions of all tasks, so of unequal length, hence padded."""
    model, processor, _ = load_model(str(reference_folder))
    samples = first_of_each_task(read_samples(reference.suite_path()), 34)
    # Questions of one task have much the same length: mix them.
    samples = [sample for first in range(34) for sample in samples[first::34]][:QUESTIONS]

    def answers(size: int) -> list[str]:
        batches = [build_inputs(processor, samples[at : at + size]) for at in range(0, QUESTIONS, size)]
        with quota.record(model) as trace:
            told = [text for batch in batches for text in decode(processor, generate(model, processor, batch))]
        assert trace.tokens_per_layer[-1] < trace.tokens_per_layer[0]
        return told

    alone = answers(1)
    assert answers(4) == alone
    assert len(set(alone)) > 10
