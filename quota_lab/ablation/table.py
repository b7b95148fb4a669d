"""A table: every row measured under several seeds, and how sure its mean is.

    mean +- t(0.975, n - 1) * s / sqrt(n)

with the standard deviation s over n seeds: the 95% interval of Student's t, as n is small.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quota.errors import QuotaError
from quota.progress import Steps, silent
from quota_lab.ablation.cells import Cells
from quota_lab.ablation.settings import TABLES, Setting
from quota_lab.ablation.subjects import Subject

# t(0.975, n - 1) for n = 2, 3, ...
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
FEWEST_SEEDS, MOST_SEEDS = 2, len(_T) + 1


@dataclass(frozen=True)
class Row:
    """One setting, under every seed."""

    label: str
    setting: Setting | None
    scores: dict[str, list[float]]
    """By the name of the score, one number a seed."""

    def figures(self) -> dict[str, Any]:
        summary = {
            name: {"by_seed": found, "mean": statistics.mean(found), "interval": list(mean_interval(found))}
            for name, found in self.scores.items()
        }
        setting = None if self.setting is None else self.setting.figures()
        return {"label": self.label, "setting": setting, "scores": summary}


@dataclass(frozen=True)
class Ablation:
    """A finished table."""

    table: str
    subject: Subject
    seeds: int
    rows: list[Row]

    def figures(self) -> dict[str, Any]:
        """What `quota ablate --json` writes."""
        return {
            "table": self.table,
            "on": self.subject.name,
            "size": self.subject.size(),
            "seeds": self.seeds,
            "rows": [row.figures() for row in self.rows],
        }


def ablate(table: str, subject: Subject, seeds: int, folder: Path, progress: Steps = silent) -> Ablation:
    """Measure what is not in `folder` yet, seed after seed, and put the table together.

    Raises QuotaError for a table that does not exist or makes no sense for the subject, and for a number of seeds
    that gives no interval.
    """
    if table not in TABLES:
        raise QuotaError(f"there is no table {table!r}; known are {', '.join(TABLES)}")
    if table not in subject.tables:
        raise QuotaError(f"the table {table} says nothing on {subject.name}; it has {', '.join(subject.tables)}")
    if not FEWEST_SEEDS <= seeds <= MOST_SEEDS:
        raise QuotaError(f"an interval takes {FEWEST_SEEDS} to {MOST_SEEDS} seeds, not {seeds}")
    rows = TABLES[table]
    cells = Cells(folder, subject)
    _measure(cells, list(dict.fromkeys([None, *rows.values()])), seeds, progress)
    return Ablation(table, subject, seeds, [_row(cells, label, setting, seeds) for label, setting in rows.items()])


def mean_interval(scores: list[float]) -> tuple[float, float]:
    """The 95% interval of the mean of `FEWEST_SEEDS` to `MOST_SEEDS` scores."""
    mean = statistics.mean(scores)
    half = _T[len(scores) - FEWEST_SEEDS] * statistics.stdev(scores) / math.sqrt(len(scores))
    return mean - half, mean + half


def _row(cells: Cells, label: str, setting: Setting | None, seeds: int) -> Row:
    pairs = ((cells.outcome(setting, seed), cells.outcome(None, seed)) for seed in range(seeds))
    found = [cells.subject.scores(outcome, full) for outcome, full in pairs]
    return Row(label, setting, {name: [scores[name] for scores in found] for name in found[0]})


def _measure(cells: Cells, settings: list[Setting | None], seeds: int, progress: Steps) -> None:
    needed = [(setting, seed) for seed in range(seeds) for setting in settings]
    missing = [cell for cell in needed if not cells.holds(*cell)]
    for done, cell in enumerate(missing):
        progress("outcomes", len(needed) - len(missing) + done, len(needed))
        cells.outcome(*cell)
    progress("outcomes", len(needed), len(needed))
