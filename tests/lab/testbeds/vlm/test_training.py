"""Training resumes exactly, and leaves a log to watch."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch
from support.tiny_testbed import make_network

from quota.errors import QuotaError
from quota_lab.testbeds.vlm import training
from quota_lab.testbeds.vlm.lessons import Lessons
from quota_lab.testbeds.vlm.photos import Photos
from quota_lab.testbeds.vlm.questions import TASKS
from quota_lab.testbeds.vlm.training import Plan, run


def train(folder: Path, state: Path, plan: Plan, stop: int | None = None) -> dict[str, torch.Tensor]:
    network, tokenizer = make_network()

    class Interrupted(Lessons):
        def __getitem__(self, index: int):
            if index == stop:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    lessons = Interrupted(tokenizer, Photos(folder, "train"), plan.seed, plan.curriculum)
    with contextlib.suppress(KeyboardInterrupt):
        run(network, lessons, Lessons(tokenizer, Photos(folder, "development"), 1), state, plan)
    return {name: tensor.detach().clone() for name, tensor in network.trained.named_parameters()}


def test_an_interrupted_run_resumes_exactly(folder: Path, tmp_path: Path) -> None:
    plan = Plan(steps=5, patch_steps=2, patch_batch=2, batch=2, checkpoint=1, warmup=1, rank=4)
    whole = train(folder, tmp_path / "whole", plan)
    for stop in (1, 4):
        train(folder, tmp_path / f"in-parts-{stop}", plan, stop)
        parts = train(folder, tmp_path / f"in-parts-{stop}", plan)
        assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())


def test_the_log(folder: Path, tmp_path: Path) -> None:
    plan = Plan(steps=20, patch_steps=18, patch_batch=1, batch=1, checkpoint=20, development=20, rank=4)
    train(folder, tmp_path / "run", plan)
    first, last = (json.loads(line) for line in (tmp_path / "run.log.jsonl").read_text().splitlines()[-2:])
    assert first["step"] == 20 and first["pictures"] == 20
    assert {"thing", "answer", "noun_present"} <= set(first["loss"])
    assert set(TASKS) <= set(first["right"]) and set(TASKS) <= set(last["development"])


def test_without_a_gpu_there_is_no_training_on_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(QuotaError, match="no GPU here"):
        training.train(folder, tmp_path / "run", training.ON_GPU, "cuda")


def test_learning_rates() -> None:
    plan = Plan(steps=100, patch_steps=40, warmup=10, decay=0.5)
    scales = [plan.scale(step) for step in range(100)]
    assert all(adapter == 0 for _, adapter in scales[:40])
    assert scales[15] == (1.0, 0.0) and scales[60] == (plan.seen, 1.0)
    assert 0 < scales[99][1] < 0.05 and scales[85][1] == 0.5


def test_pictures_get_fuller_and_batches_larger() -> None:
    plan = Plan()
    lessons = [plan.curriculum(step) for step in range(plan.patch_steps, plan.steps)]
    assert [lessons[read].most for read in (0, 199, 200, 399, 400)] == [3, 3, 4, 4, 6]
    assert [lessons[read].batch for read in (0, 399, 400, 1499, 1500)] == [4, 4, 8, 8, 16]
