"""Run one table of the study, from questions to figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quota.checkpoint.named import calibration_samples, find_folder
from quota.errors import QuotaError
from quota.progress import Steps
from quota.samples import Sample, first_of_each_task, read_samples
from quota_lab import reference
from quota_lab.reference import NAME as REFERENCE
from quota_lab.study import sealed
from quota_lab.study.figures import Figure, figure
from quota_lab.study.halves import Half, half
from quota_lab.study.tables import FULL, Table
from quota_lab.study.workshop import Outcome, Workshop

TURNS = 20
"""Prefills of which the time is the median."""


@dataclass(frozen=True)
class Study:
    """What a table is measured on. Everything that changes a figure stands here, and in the report."""

    model: str = REFERENCE
    suite: Path | None = None
    """None: the reference suite."""
    calibration: Path | None = None
    """Questions to calibrate on; None: drawn by the generator of the reference world."""
    questions: Half = "reported"
    limit: int | None = None
    """Questions of each task; None: all."""
    seeds: int = 5
    draw: int | None = None
    """Seed of the sealed questions of the reference suite."""

    def samples(self) -> list[Sample]:
        """The questions that are asked. QuotaError if it is not clear which."""
        if (self.draw is not None) != (self.questions == "sealed" and self.suite is None):
            raise QuotaError("--half sealed of the reference suite takes --draw SEED, and nothing else does")
        if self.draw is not None:
            return sealed.draw(self.draw, self.limit or sealed.QUESTIONS)
        found = half(read_samples(self.suite or reference.suite_path()), self.questions)
        return found if self.limit is None else first_of_each_task(found, self.limit)

    def calibration_samples(self, count: int, seed: int) -> list[Sample]:
        """`count` samples drawn by `seed`. QuotaError if there are too few."""
        return calibration_samples(self.model, self.calibration, count, seed)


@dataclass(frozen=True)
class Row:
    """A row of a table, measured."""

    name: str
    figure: Figure
    prefill: float | None
    """Seconds; None if it was not timed."""


def run_table(table: Table, study: Study, cache: Path, timed: bool, progress: Steps) -> list[Row]:
    """Measure all rows of a table; what the cache holds is not measured again (prefill times are)."""
    workshop = Workshop(study.model, study.samples(), study.calibration_samples, cache, progress)
    outcomes = _outcomes(table, study, workshop)
    prefills = workshop.prefills(list(table.rows.values()), TURNS) if timed else [None] * len(table.rows)
    rows = []
    for number, (name, seconds) in enumerate(zip(table.rows, prefills, strict=True)):
        rival = table.rival(name)
        other = None if rival is None else outcomes[rival]
        rows.append(Row(name, figure(outcomes[name], outcomes[FULL], other), seconds))
        progress("figures", number + 1, len(table.rows))
    return rows


def _outcomes(table: Table, study: Study, workshop: Workshop) -> dict[str, list[Outcome]]:
    """Seed by seed, so that a quantised model is loaded once for all rows that share it."""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in table.rows}
    total, done = study.seeds * len(table.rows), 0
    for seed in range(study.seeds):
        for name, variant in table.rows.items():
            outcomes[name].append(workshop.outcome(variant.model_copy(update={"seed": seed})))
            done += 1
            workshop.progress("study", done, total)
    return outcomes


def plan_lines(table: Table, study: Study) -> list[str]:
    """What `run_table` would do. QuotaError for a suite, calibration questions or a model that are not there.

    Nothing is loaded, and a hub id is taken on trust.
    """
    asked = study.samples()
    if (missing := next((sample for sample in asked if sample.answer is None), None)) is not None:
        raise QuotaError(f"the question {missing.question!r} has no answer to compare with; add one to its line")
    find_folder(study.model)
    most = max(variant.samples for variant in table.rows.values() if variant.calibrated)
    study.calibration_samples(most, 0)
    lines = [
        f"model {study.model}, {study.questions} of {study.suite or 'the reference suite'}, {len(asked)} questions",
        f"calibrated on {study.calibration or 'generated samples'}, seeds 0 to {study.seeds - 1}",
    ]
    for name, variant in table.rows.items():
        shown = variant.model_dump(mode="json", exclude_defaults=True, exclude={"seed"})
        lines.append(f"{name}: {shown or 'default scheme, all tokens'}")
    return lines
