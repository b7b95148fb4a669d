"""Fixtures that tests of several rooms share: a tiny random model as its user would have it, on disk."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest
from support.tiny_llava import make_model, make_samples, processor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

import quota
from quota.checkpoint.named import load_model
from quota.prompts import answer
from quota.samples import Sample
from quota_lab import reference
from quota_lab.reference import NAME as REFERENCE


@pytest.fixture
def tiny_processor() -> LlavaProcessor:
    """A fresh processor for the models of `tiny_llava`."""
    return processor()


@pytest.fixture(scope="session")
def full_model() -> LlavaForConditionalGeneration:
    """The uncompressed model of `full_folder`; not to be changed."""
    return make_model()


@pytest.fixture(scope="session")
def full_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its processor, as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("models") / "full"
    make_model().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def quota_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model compressed at the default scheme and 30%."""
    folder = tmp_path_factory.mktemp("models") / "compressed"
    model, tools = make_model(), processor()
    quota.compress(model, tools, make_samples(6), keep=0.30)
    quota.save_pretrained(model, tools, folder)
    return folder


@pytest.fixture(scope="session")
def reference_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled reference model at W4A4KV4 and 30%, from few samples; made once for all of pytest's workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "models" / "reference"
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            model, tools, _ = load_model(REFERENCE)
            quota.compress(model, tools, reference.calibration_samples(8, seed=0), keep=0.30)
            quota.save_pretrained(model, tools, folder)
    return folder


@pytest.fixture(scope="session")
def suite_folder(tmp_path_factory: pytest.TempPathFactory, full_model: LlavaForConditionalGeneration) -> Path:
    """Eight questions of two tasks. The full model is right on all of "easy" and on half of "hard"."""
    folder = tmp_path_factory.mktemp("suite")
    lines = []
    for number, sample in enumerate(make_samples(8, seed=1)):
        file = folder / f"{number}.png"
        assert not isinstance(sample.image, Path)
        sample.image.save(file)
        told = answer(full_model, processor(), Sample(file, sample.question))
        right = number < 4 or number % 2 == 0
        task = "easy" if number < 4 else "hard"
        line = {"image": file.name, "question": sample.question, "answer": told if right else "wrong", "task": task}
        lines.append(json.dumps(line))
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n")
    return folder
