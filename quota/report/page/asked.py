"""What a suite of questions says about a checkpoint: accuracy, what is retained of full precision, and what it saw.

The checkpoint answers all questions; so does the original, if it is at hand. A few questions are shown: they go through
the checkpoint while it is recorded, through the same weights with the Pruner taken off ("quantised"), and through the
original. What an answer leaves in the KV cache is counted for the first question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from quota.checkpoint.named import label, load_model
from quota.evaluation import Evaluation, Footprint, evaluate, footprint, retention, retention_interval
from quota.evaluation.answers import matches
from quota.evaluation.evaluate import UNNAMED_TASK, check_answers
from quota.evaluation.statistics import accuracy_interval
from quota.progress import Steps, silent
from quota.prompts import answer
from quota.pruning.pruner import is_pruned
from quota.report.explain import Followed, follow
from quota.samples import Sample

SHOWN = 12
"""Questions that are drawn."""
FULL, QUANTISED, QUOTA = "full precision", "quantised", "QUOTA"
Interval = tuple[float, float]


@dataclass(frozen=True)
class Suite:
    """Questions with known answers."""

    name: str
    samples: Sequence[Sample]
    whole: int
    """How many there are, of which `samples` may be the first of each task."""


@dataclass(frozen=True)
class Shown:
    """One question that is drawn, and the answers to it by variant."""

    sample: Sample
    followed: Followed
    answers: dict[str, str]

    def right(self, variant: str) -> bool:
        return matches(self.answers[variant], self.sample.answer or "")


@dataclass(frozen=True)
class Asked:
    """All that was measured on a suite. Accuracies and retention are fractions."""

    suite: Suite
    evaluation: Evaluation
    """Of the checkpoint."""
    baseline: str | None
    """What the original is called; None if it was not at hand."""
    original: Evaluation | None
    footprints: dict[str, Footprint]
    """Variant -> what its prefill of the first question leaves behind."""
    shown: list[Shown] = field(default_factory=list)

    @property
    def retention(self) -> float | None:
        """As `quota eval --baseline` has it; None if there is no baseline, and where it is undefined."""
        return None if self.original is None else retention(self.evaluation.outcomes, self.original.outcomes)

    @property
    def retention_interval(self) -> Interval | None:
        if self.original is None:
            return None
        return retention_interval(self.evaluation.outcomes, self.original.outcomes)

    def task_interval(self, task: str) -> Interval:
        """95% interval of the checkpoint's accuracy in one task."""
        return accuracy_interval({task: self.evaluation.outcomes[task]})

    def task_retention(self, task: str) -> tuple[float, Interval] | None:
        """Retention in one task with its 95% interval; None as for all."""
        if self.original is None:
            return None
        ours, theirs = {task: self.evaluation.outcomes[task]}, {task: self.original.outcomes[task]}
        share, interval = retention(ours, theirs), retention_interval(ours, theirs)
        return None if share is None or interval is None else (share, interval)

    def figures(self) -> dict[str, Any]:
        """What `quota eval --json` writes of these, without its speed and backends."""
        interval = self.retention_interval
        return {
            "accuracy": self.evaluation.accuracy,
            "average": self.evaluation.average,
            "interval": list(self.evaluation.interval),
            "questions": self.evaluation.questions,
            "retention": self.retention,
            "retention_interval": interval and list(interval),
        }


def ask(
    out: Path, suite: Suite, baseline: str | None = None, batch_size: int | None = None, progress: Steps = silent
) -> Asked:
    """Ask the checkpoint in `out` and, if there is one, the model `baseline` all questions of `suite`.

    Only one of the two is in memory at a time. Raises QuotaError as `evaluate`, `load_model` and `follow` do.
    """
    check_answers(suite.samples)
    chosen = several_of_each_task(suite.samples, SHOWN)
    model, processor, _ = load_model(str(out))
    evaluation = evaluate(model, processor, suite.samples, batch_size, progress=partial(progress, "answering"))
    followed, answers = [], [dict[str, str]() for _ in chosen]
    for number, (sample, told) in enumerate(zip(chosen, answers, strict=True), start=1):
        followed.append(follow(model, processor, sample))
        told[QUOTA] = followed[-1].answer
        progress("following tokens", number, len(chosen))
    footprints = {QUOTA: footprint(model, processor, suite.samples[0])}
    if is_pruned(model):
        pruner: Any = model.quota_pruner
        pruner.detach()
        _answer(model, processor, QUANTISED, chosen, answers, progress)
        footprints[QUANTISED] = footprint(model, processor, suite.samples[0])
    original = None
    if baseline is not None:
        # The first of the two goes before the second comes.
        del model
        model, processor, _ = load_model(baseline)
        step = f"answering as {label(baseline)}"
        original = evaluate(model, processor, suite.samples, batch_size, progress=partial(progress, step))
        _answer(model, processor, FULL, chosen, answers, progress)
        footprints[FULL] = footprint(model, processor, suite.samples[0])
    shown = [Shown(*one) for one in zip(chosen, followed, answers, strict=True)]
    return Asked(suite, evaluation, None if baseline is None else label(baseline), original, footprints, shown)


def several_of_each_task(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most `count` samples, the first ones of every task in turn, each about a picture that no other has shown.

    Where no picture is left, those that were shown are asked about again.
    """
    tasks: dict[str, list[Sample]] = {}
    for sample in samples:
        tasks.setdefault(sample.task or UNNAMED_TASK, []).append(sample)
    chosen: list[Sample] = []
    while len(chosen) < count and any(tasks.values()):
        for task in [own for own in tasks.values() if own][: count - len(chosen)]:
            seen = [other.image for other in chosen]
            fresh = next((number for number, one in enumerate(task) if one.image not in seen), 0)
            chosen.append(task.pop(fresh))
    return chosen


def _answer(
    model: Any, processor: Any, variant: str, chosen: list[Sample], answers: list[dict[str, str]], progress: Steps
) -> None:
    for number, (sample, told) in enumerate(zip(chosen, answers, strict=True), start=1):
        told[variant] = answer(model, processor, sample)
        progress(f"answers, {variant}", number, len(chosen))
