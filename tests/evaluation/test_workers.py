"""A suite answered by several workers: what one process answers, also if a worker is killed. `make test-serve` runs
this."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from quota.checkpoint.named import load_model
from quota.errors import QuotaError
from quota.evaluation import evaluate
from quota.evaluation.evaluate import Evaluation
from quota.evaluation.workers import evaluate_over
from quota.samples import Sample, read_samples

pytest.importorskip("ray", reason="run by `make test-serve`")
psutil = pytest.importorskip("psutil")
pytestmark = pytest.mark.slow

BATCH = 2


@pytest.fixture(scope="module")
def questions(suite_folder: Path) -> list[Sample]:
    return read_samples(suite_folder)


@pytest.fixture(scope="module")
def alone(quota_folder: Path, questions: list[Sample]) -> Evaluation:
    """What one process answers."""
    model, processor, _ = load_model(str(quota_folder))
    return evaluate(model, processor, questions, BATCH)


def test_two_workers_answer_what_one_process_does(
    quota_folder: Path, questions: list[Sample], alone: Evaluation
) -> None:
    seen: list[tuple[int, int]] = []
    found = evaluate_over(str(quota_folder), questions, 2, BATCH, progress=lambda *at: seen.append(at))
    assert found.answers == alone.answers
    assert (found.outcomes, found.majority, found.new_tokens) == (alone.outcomes, alone.majority, alone.new_tokens)
    assert found.operators.backends() == alone.operators.backends()
    assert seen == [(2, 8), (4, 8), (6, 8), (8, 8)]


def test_the_batch_of_a_killed_worker_is_asked_again(
    quota_folder: Path, questions: list[Sample], alone: Evaluation
) -> None:
    killed = []

    def kill(done: int, total: int) -> None:
        if not killed:
            workers = [child for child in psutil.Process().children(recursive=True) if "_Worker" in child.cmdline()[0]]
            killed.append(workers[0])
            workers[0].send_signal(signal.SIGKILL)

    found = evaluate_over(str(quota_folder), questions, 2, BATCH, progress=kill)
    assert len(killed) == 1
    assert found.answers == alone.answers


def test_what_a_worker_says_is_one_line(quota_folder: Path) -> None:
    with pytest.raises(QuotaError, match=r"cannot read .*nothing\.png"):
        evaluate_over(str(quota_folder), [Sample(Path("nothing.png"), "w20", "w21")], 2)
    with pytest.raises(QuotaError, match="no answer to compare with"):
        evaluate_over(str(quota_folder), [Sample(Path("nothing.png"), "w20")], 2)
