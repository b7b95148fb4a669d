"""A suite through a real (tiny) model: what is counted, and that batches change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from quota.errors import QuotaError
from quota.evaluation import evaluate
from quota.prompts import count_tokens
from quota.samples import Sample, read_samples


def test_figures_of_a_known_suite(full_model, tiny_processor, suite_folder: Path) -> None:
    seen = []
    samples = read_samples(suite_folder)
    evaluation = evaluate(full_model, tiny_processor, samples, batch_size=3, progress=lambda *at: seen.append(at))
    figures = evaluation.figures()
    assert list(figures) == ["accuracy", "average", "interval", "questions", "tokens_per_second", "backends"]
    assert figures["accuracy"] == {"easy": 1.0, "hard": 0.5}
    assert figures["average"] == 0.75
    assert figures["questions"] == 8
    low, high = figures["interval"]
    assert 0.5 <= low < 0.75 < high <= 1.0
    assert figures["tokens_per_second"] > 0
    assert figures["backends"] == {}
    assert evaluation.majority["hard"] == 0.5
    assert seen == [(3, 8), (6, 8), (8, 8)]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_batch_size_does_not_change_answers(full_model, tiny_processor, suite_folder, batch_size: int) -> None:
    samples = read_samples(suite_folder)
    evaluation = evaluate(full_model, tiny_processor, samples, batch_size=batch_size)
    assert evaluation.outcomes == {"easy": [True] * 4, "hard": [True, False, True, False]}


def test_questions_without_a_task_are_one_task(full_model, tiny_processor) -> None:
    evaluation = evaluate(full_model, tiny_processor, [Sample(Image.new("RGB", (32, 32)), "what", "two")])
    assert list(evaluation.accuracy) == ["all"]


def test_what_cannot_be_evaluated(full_model, tiny_processor) -> None:
    sample = Sample(Image.new("RGB", (32, 32)), "how many cats")
    with pytest.raises(QuotaError, match="no questions"):
        evaluate(full_model, tiny_processor, [])
    with pytest.raises(QuotaError, match="no answer to compare"):
        evaluate(full_model, tiny_processor, [sample])
    with pytest.raises(QuotaError, match="at least 1"):
        evaluate(full_model, tiny_processor, [sample], batch_size=0)


@pytest.mark.parametrize(
    ("padding", "end", "expected"),
    [pytest.param(0, 2, 5, id="padding of its own"), pytest.param(2, 2, 5, id="padded with the end mark")],
)
def test_tokens_are_counted_to_the_end_mark(tiny_processor, padding: int, end: int, expected: int) -> None:
    tokens = torch.tensor([[7, end, padding], [7, 8, 9]])
    tiny_processor.tokenizer.pad_token_id = padding
    assert tiny_processor.tokenizer.eos_token_id == end
    assert count_tokens(tiny_processor, tokens) == expected
