"""Ask a model every question of a suite and count the right answers.

Questions go through `generate` in batches, greedily: the same code path a user's prompt takes. Accuracy is exact
match after normalisation (quota/evaluation/answers.py), reported per task, with the mean over tasks, its 95%
bootstrap interval, and what always giving a task's commonest answer would score.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from quota import ops
from quota.errors import QuotaError
from quota.evaluation.answers import matches, normalize_answer
from quota.evaluation.statistics import accuracy_interval
from quota.ops.device import at_once
from quota.progress import Progress
from quota.prompts import build_inputs, count_tokens, decode, generate
from quota.samples import Sample, batches

BATCH_SIZE = 32
UNNAMED_TASK = "all"


@dataclass(frozen=True)
class Evaluation:
    """A suite's outcome. Accuracies are fractions in [0, 1]; tasks keep the order of the suite."""

    outcomes: dict[str, list[bool]]
    """Per task, whether each question was answered right: what retention and intervals are computed from."""
    majority: dict[str, float]
    """Per task, the accuracy of always giving its commonest answer."""
    answers: list[str]
    """The model's answers, in the order of the samples."""
    new_tokens: int
    seconds: float
    seed: int = 0
    operators: ops.Usage = field(default_factory=ops.Usage)
    """The backends that ran."""

    @property
    def accuracy(self) -> dict[str, float]:
        return {task: sum(right) / len(right) for task, right in self.outcomes.items()}

    @property
    def average(self) -> float:
        """Mean of the tasks' accuracies: every task weighs the same."""
        return sum(self.accuracy.values()) / len(self.outcomes)

    @property
    def interval(self) -> tuple[float, float]:
        """95% bootstrap interval of `average`, stratified by task."""
        return accuracy_interval(self.outcomes, self.seed)

    @property
    def questions(self) -> int:
        return len(self.answers)

    @property
    def tokens_per_second(self) -> float:
        """Answer tokens (end marks included) over the time of `generate`, prefill included."""
        return self.new_tokens / self.seconds

    def figures(self) -> dict[str, Any]:
        """What `quota eval --json` writes."""
        return {
            "accuracy": self.accuracy,
            "average": self.average,
            "interval": list(self.interval),
            "questions": self.questions,
            "tokens_per_second": self.tokens_per_second,
            "backends": self.operators.backends(),
        }


@dataclass(frozen=True)
class Answered:
    """One batch of questions."""

    answers: list[str]
    new_tokens: int
    seconds: float
    """Of `generate`."""
    operators: ops.Usage


def evaluate(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    batch_size: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Answer all samples greedily, `batch_size` at a time (None: 32, on a GPU 128), and compare with known answers.

    `seed` is the bootstrap's. Samples without a task count as one task, "all". Raises QuotaError for no samples,
    for a sample without an answer, and for a batch size below 1.
    """
    batch_size = at_once(BATCH_SIZE, model.device) if batch_size is None else batch_size
    if batch_size < 1:
        raise QuotaError(f"a batch of {batch_size} questions cannot be asked; give at least 1")
    check_answers(samples)
    answered: list[Answered] = []
    done = 0
    for together in batches(samples, batch_size):
        answered.append(answer_batch(model, processor, together))
        done += len(together)
        if progress is not None:
            progress(done, len(samples))
    return judge(samples, answered, sum(batch.seconds for batch in answered), seed)


def answer_batch(model: Any, processor: Any, together: Sequence[Sample]) -> Answered:
    """The model's answers to questions that are asked at once."""
    batch = build_inputs(processor, together)
    began = time.perf_counter()
    with ops.record() as operators:
        generated = generate(model, processor, batch)
    seconds = time.perf_counter() - began
    return Answered(decode(processor, generated), count_tokens(processor, generated), seconds, operators)


def judge(samples: Sequence[Sample], answered: Sequence[Answered], seconds: float, seed: int = 0) -> Evaluation:
    """What `answered`, the batches of `samples` in their order, are worth; answering them took so many `seconds`."""
    answers = [answer for batch in answered for answer in batch.answers]
    outcomes: dict[str, list[bool]] = {}
    known: dict[str, list[str]] = {}
    for sample, answer in zip(samples, answers, strict=True):
        task, right_answer = sample.task or UNNAMED_TASK, _known_answer(sample)
        outcomes.setdefault(task, []).append(matches(answer, right_answer))
        known.setdefault(task, []).append(normalize_answer(right_answer))
    majority = {task: Counter(right).most_common(1)[0][1] / len(right) for task, right in known.items()}
    operators = ops.Usage()
    for batch in answered:
        operators.calls.update(batch.operators.calls)
        operators.lacking |= batch.operators.lacking
    new_tokens = sum(batch.new_tokens for batch in answered)
    return Evaluation(outcomes, majority, answers, new_tokens, seconds, seed, operators)


def check_answers(samples: Sequence[Sample]) -> None:
    """QuotaError if there is nothing to compare answers with: better before the questions are asked."""
    if not samples:
        raise QuotaError("there are no questions to evaluate on")
    for sample in samples:
        _known_answer(sample)


def _known_answer(sample: Sample) -> str:
    if sample.answer is None:
        raise QuotaError(f"the question {sample.question!r} has no answer to compare with; add one to its line")
    return sample.answer
