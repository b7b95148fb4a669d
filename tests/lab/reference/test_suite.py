"""The fixed suites: complete, balanced, and disjoint from what is calibrated on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quota.samples import Sample, read_samples
from quota_lab import reference
from quota_lab.reference.questions import TASKS
from quota_lab.reference.suite import write_easy_vqa, write_suite


@pytest.fixture(scope="module")
def suite() -> list[Sample]:
    return read_samples(reference.suite_path())


def pixels(sample: Sample) -> bytes:
    image = sample.image if isinstance(sample.image, Image.Image) else Image.open(sample.image)
    return np.asarray(image.convert("RGB")).tobytes()


def test_six_tasks_of_a_thousand_questions(suite: list[Sample]) -> None:
    assert Counter(sample.task for sample in suite) == dict.fromkeys(TASKS, 1000)
    assert len({(sample.image, sample.question) for sample in suite}) == len(suite)


def test_a_seventh_of_easy_vqa() -> None:
    assert Counter(sample.task for sample in read_samples(reference.easy_vqa_path())) == {"easy-vqa": 1000}


@pytest.mark.parametrize("task", ["existence", "relations"])
def test_yes_and_no_are_balanced(suite: list[Sample], task: str) -> None:
    answers = Counter(sample.answer for sample in suite if sample.task == task)
    assert 0.45 <= answers["yes"] / (answers["yes"] + answers["no"]) <= 0.55


def test_no_picture_is_calibrated_on(suite: list[Sample]) -> None:
    asked = {pixels(sample) for sample in {sample.image: sample for sample in suite}.values()}
    assert asked.isdisjoint(pixels(sample) for sample in reference.calibration_samples(256))


def test_calibration_samples_are_fixed_by_their_seed() -> None:
    first, again, other = (reference.calibration_samples(6, seed) for seed in (0, 0, 1))
    assert [(s.question, pixels(s)) for s in first] == [(s.question, pixels(s)) for s in again]
    assert [s.question for s in first] != [s.question for s in other]
    assert [s.task for s in first] == list(TASKS)


def test_the_writer_makes_the_shipped_questions(tmp_path: Path, suite: list[Sample]) -> None:
    """The first pictures of a shorter suite are those of the whole one."""
    write_suite(tmp_path / "suite", questions=5)
    written = read_samples(tmp_path / "suite")
    shipped = {(sample.question, pixels(sample)) for sample in suite[:200]}
    assert {(sample.question, pixels(sample)) for sample in written[:10]} <= shipped
    write_easy_vqa(tmp_path / "easy", questions=3)
    assert len(read_samples(tmp_path / "easy")) == 3
