"""From outcomes to figures: retention with its interval, the difference to another row, and the spread over seeds.

    retention    mean over tasks of accuracy / full-precision accuracy (docs/method.md), averaged over seeds
    interval     95%, paired bootstrap: the same resampled questions for a row, the full-precision row, and the row that
                 it is compared with; the seeds' outcomes of a question are averaged before
    spread       lowest and highest retention of a single seed

The interval says how sure the figure is given these calibration sets, the spread how much another one would change it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quota.evaluation.statistics import difference_interval, retention, retention_interval
from quota_lab.study.workshop import Outcome

Averaged = Mapping[str, Sequence[float]]
"""Per task, the share of seeds that answered each question right."""


@dataclass(frozen=True)
class Figure:
    """One row of a table. Retentions are fractions, 1 is full precision."""

    accuracy: dict[str, float]
    retention: float | None
    interval: tuple[float, float] | None
    spread: tuple[float, float] | None
    """None for a single seed."""
    against: float | None
    """Retention less that of the row it is compared with; None for that row itself."""
    against_interval: tuple[float, float] | None
    layers: list[list[int]]
    """Candidate layers of every seed."""
    tokens_per_layer: list[list[int]]
    """Visual tokens entering each decoder layer, of every seed."""
    cost: float
    """Prefill arithmetic of the visual tokens, relative to keeping all; the mean over seeds."""
    seeds: int


def figure(outcomes: Sequence[Outcome], full: Sequence[Outcome], other: Sequence[Outcome] | None) -> Figure:
    """The figure of a row's `outcomes`, one a seed; `full` is full precision, `other` the row it is compared with."""
    mean, baseline = average(outcomes), average(full)
    single = [retention(one.right, full[0].right) for one in outcomes]
    known = [one for one in single if one is not None]
    against = against_interval = None
    kept = retention(mean, baseline)
    if other is not None:
        rival = retention(average(other), baseline)
        if kept is not None and rival is not None:
            against = kept - rival
            against_interval = difference_interval(mean, average(other), baseline)
    return Figure(
        accuracy={task: float(np.mean(right)) for task, right in mean.items()},
        retention=kept,
        interval=retention_interval(mean, baseline),
        spread=(min(known), max(known)) if len(known) > 1 else None,
        against=against,
        against_interval=against_interval,
        layers=[one.layers for one in outcomes],
        tokens_per_layer=[one.tokens_per_layer for one in outcomes],
        cost=float(np.mean([one.cost for one in outcomes])),
        seeds=len(outcomes),
    )


def average(outcomes: Sequence[Outcome]) -> Averaged:
    """Outcomes of the same questions, averaged over seeds."""
    return {task: np.mean([one.right[task] for one in outcomes], axis=0).tolist() for task in outcomes[0].right}
