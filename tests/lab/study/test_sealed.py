"""Sealed questions are new, the same for a seed, and asked by one version of the code."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from quota.errors import QuotaError
from quota.samples import digest, fingerprint, read_samples
from quota_lab import reference
from quota_lab.study.run import Study
from quota_lab.study.sealed import LEDGER, claim, draw


def test_every_task_has_its_questions_and_no_suite_has_them() -> None:
    drawn = draw(1, 20)
    assert set(Counter(sample.task for sample in drawn).values()) == {20}
    pixels = {picture.tobytes() for sample in drawn for picture in sample.pictures()}
    known = {
        picture.tobytes() for sample in read_samples(reference.suite_path())[:300] for picture in sample.pictures()
    }
    assert not pixels & known


def test_a_seed_draws_the_same_questions_and_another_draws_others() -> None:
    assert [digest(sample) for sample in draw(1, 2)] == [digest(sample) for sample in draw(1, 2)]
    assert fingerprint(draw(1, 2)) != fingerprint(draw(2, 2))


def test_one_version_asks_as_many_tables_as_it_likes_and_another_none(tmp_path: Path) -> None:
    claim(tmp_path, "keep", "questions", "seed 1", "code")
    claim(tmp_path, "methods", "questions", "seed 1", "code")
    with pytest.raises(QuotaError, match=r"seed 1.*other code, for keep, methods"):
        claim(tmp_path, "keep", "questions", "seed 1", "other code")
    claim(tmp_path, "keep", "other questions", "seed 2", "other code")
    assert [entry["tables"] for entry in json.loads((tmp_path / LEDGER).read_text())] == [["keep", "methods"], ["keep"]]


def test_a_ledger_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / LEDGER).write_text('[{"questions": 3}]')
    with pytest.raises(QuotaError, match="not a ledger"):
        claim(tmp_path, "keep", "questions", "seed 1", "code")


@pytest.mark.parametrize(
    "study",
    [Study(questions="sealed"), Study(draw=1), Study(questions="sealed", suite=Path("suite"), draw=1)],
    ids=["no seed", "not sealed", "a suite of its own"],
)
def test_a_seed_belongs_to_sealed_questions_of_the_reference_suite(study: Study) -> None:
    with pytest.raises(QuotaError, match="--draw"):
        study.samples()
