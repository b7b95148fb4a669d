"""The shipped model: stock layout, small, and as good as its card says."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from quota.checkpoint.named import load_model
from quota.evaluation import Evaluation, evaluate
from quota.samples import first_of_each_task, read_samples
from quota_lab import reference
from quota_lab.reference.architecture import build_config
from quota_lab.reference.questions import TASKS

pytestmark = pytest.mark.slow

STOCK = """
import sys, torch
from transformers import AutoModelForImageTextToText, AutoProcessor
model, report = AutoModelForImageTextToText.from_pretrained(sys.argv[1], dtype=torch.float32, output_loading_info=True)
AutoProcessor.from_pretrained(sys.argv[1])
assert "quota" not in sys.modules
assert not report["missing_keys"] and not report["unexpected_keys"], report
print(float(sum(p.detach().double().abs().sum() for p in model.parameters())))
"""


def test_it_loads_without_quota() -> None:
    command = [sys.executable, "-c", STOCK, str(reference.model_path())]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    model, _, _ = load_model("reference")
    assert float(printed) == pytest.approx(
        float(sum(p.detach().double().abs().sum() for p in model.parameters())), rel=1e-9
    )


def test_it_is_the_architecture_that_the_trainer_builds() -> None:
    model, _, _ = load_model("reference")
    expected = build_config()
    assert model.config.text_config.num_hidden_layers == expected.text_config.num_hidden_layers
    assert model.config.vision_config.hidden_size == expected.vision_config.hidden_size
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_it_is_under_20_megabytes() -> None:
    assert sum(file.stat().st_size for file in reference.model_path().glob("*.safetensors")) < 20e6


@pytest.fixture(scope="module")
def outcome() -> Evaluation:
    model, processor, _ = load_model("reference")
    return evaluate(model, processor, first_of_each_task(read_samples(reference.suite_path()), 40))


@pytest.mark.parametrize("task", TASKS)
def test_it_is_well_above_the_majority_answer(outcome: Evaluation, task: str) -> None:
    assert outcome.accuracy[task] > outcome.majority[task] + 0.15
