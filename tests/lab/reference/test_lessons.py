"""Training batches, the training loss against the model's own forward pass, and resuming."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from quota.errors import QuotaError
from quota_lab.reference import tokenizer as t
from quota_lab.reference.architecture import build_model
from quota_lab.reference.lessons import IGNORE, PREFIX, Batch, Lessons, to_float
from quota_lab.reference.pictures import draw
from quota_lab.reference.questions import Question
from quota_lab.reference.state import load_state, save_state
from quota_lab.reference.train import Heads, Plan, _step, optimizers, read, see


@pytest.fixture(scope="module")
def processor() -> LlavaProcessor:
    return t.build_processor(t.build_tokenizer())


@pytest.fixture
def model() -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    return build_model()


def lessons(processor: LlavaProcessor, batch: int = 2) -> Lessons:
    return Lessons(processor.tokenizer, batch, seed=0, easy_vqa=None)


def test_a_batch_depends_on_its_number_alone(processor: LlavaProcessor) -> None:
    first, again, other = lessons(processor)[3], lessons(processor)[3], lessons(processor)[4]
    assert torch.equal(first.ids, again.ids) and torch.equal(first.pixels, again.pixels)
    assert not torch.equal(first.pixels, other.pixels)


def test_a_turn_sees_the_picture_and_itself(processor: LlavaProcessor) -> None:
    batch = lessons(processor)[0]
    mask = batch.mask()[0, 0]
    turns = batch.turns[0]
    for query in range(PREFIX, len(turns)):
        seen = mask[query].nonzero().flatten()
        assert (seen <= query).all()
        assert set(turns[seen].tolist()) <= {-1, int(turns[query])}
        assert (seen < PREFIX).sum() == PREFIX


def test_packed_turns_cost_what_they_would_alone(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor
) -> None:
    """One code path: the loss of packed questions is that of the stock model asked one by one."""
    image, _ = draw(Random(2))
    questions = [Question("reading", "Read the sign.", "STOP"), Question("existence", "Is there a cat?", "no")]
    rows = torch.from_numpy(lessons(processor)._text(questions, conversation=False))[:, None]
    pixels = torch.from_numpy(np.array(image))[None]
    batch = Batch(pixels, torch.empty(0), torch.empty(0), *rows)
    with torch.no_grad():
        packed, _ = read(model, see(model, to_float(pixels)), batch)
        total, count = torch.zeros(()), 0
        for question in questions:
            prompt = f"<s><image><user> {question.text}<assistant>"
            inputs = processor(images=[image], text=[f"{prompt} {question.answer}</s>"], return_tensors="pt")
            asked = processor(images=[image], text=[prompt], return_tensors="pt")["input_ids"].shape[1]
            labels = inputs["input_ids"].clone()
            labels[:, :asked] = IGNORE
            logits = model(**inputs).logits[0, asked - 1 : -1]
            total += F.cross_entropy(logits, labels[0, asked:], reduction="sum")
            count += len(logits)
    assert packed == pytest.approx(float(total / count), abs=1e-4)


def test_an_interrupted_run_resumes_exactly(processor: LlavaProcessor, tmp_path: Path) -> None:
    plan, batches = Plan(steps=8, tower_steps=1, warmup=1), lessons(processor, 1)

    def run(start: int, stop: int, state: Path) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model, heads = build_model(), Heads(256, processor.tokenizer)
        parts = torch.nn.ModuleDict({"model": model, "heads": heads})
        groups = optimizers(model, heads, plan)
        assert load_state(state, parts, groups) == start
        for step in range(start, stop):
            _step(step, plan, model, heads, groups, batches[step])
        save_state(state, parts, groups, stop)
        return dict(model.named_parameters())

    whole = run(0, 3, tmp_path / "whole")
    run(0, 2, tmp_path / "state")
    resumed = run(2, 3, tmp_path / "state")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_foreign_state_is_refused(tmp_path: Path) -> None:
    small = torch.nn.Linear(2, 2)
    save_state(tmp_path / "state", small, [], 1)
    with pytest.raises(QuotaError, match="another model"):
        load_state(tmp_path / "state", torch.nn.Linear(2, 2, bias=False), [])
