"""How sure the figures are: 95% bootstrap intervals, drawn within each task, and retention against a baseline.

The average of a suite is the mean of its tasks' accuracies, every task weighing the same. So questions are
resampled (with replacement) within their task, the statistic is recomputed, and the interval is the 2.5th and
97.5th percentile. Retention against a baseline is (docs/method.md)

    retention = mean over tasks of score / full-precision score

Two variants that answered the same questions are resampled together, which takes the luck of the questions out of their
ratio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from quota.errors import QuotaError

RESAMPLES = 2000
_TAILS = (2.5, 97.5)

Outcomes = Mapping[str, Sequence[bool]] | Mapping[str, Sequence[float]]
"""Per task, whether each question was answered right (or how often, over several runs), in their order."""


def accuracy_interval(outcomes: Outcomes, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95% interval of the mean over tasks of accuracy, as fractions."""
    columns = [np.asarray(task, dtype=float)[:, None] for task in outcomes.values()]
    averages = _resample(columns, seed, resamples)[:, :, 0].mean(axis=1)
    low, high = np.percentile(averages, _TAILS)
    return float(low), float(high)


def retention(outcomes: Outcomes, baseline: Outcomes) -> float | None:
    """Mean over tasks of accuracy / baseline accuracy.

    None where it is undefined: the baseline answers nothing right in some task.
    Raises QuotaError if the two did not answer the same tasks and numbers of questions.
    """
    columns = _paired(outcomes, baseline)
    return _mean_ratio(np.stack([column.mean(axis=0) for column in columns])[None])[0]


def retention_interval(
    outcomes: Outcomes, baseline: Outcomes, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float] | None:
    """95% interval of `retention`, the two variants resampled question by question together; None as there."""
    columns = _paired(outcomes, baseline)
    if retention(outcomes, baseline) is None:
        return None
    # In a small task a resample may hold no question that the baseline got right: no ratio there, so not counted.
    ratios = [ratio for ratio in _mean_ratio(_resample(columns, seed, resamples)) if ratio is not None]
    low, high = np.percentile(ratios, _TAILS)
    return float(low), float(high)


def difference_interval(
    outcomes: Outcomes, other: Outcomes, baseline: Outcomes, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float] | None:
    """95% interval of retention(outcomes) - retention(other), all three resampled together; None as for retention."""
    first, second = _paired(outcomes, baseline), _paired(other, baseline)
    columns = [np.column_stack([one, two[:, 0]]) for one, two in zip(first, second, strict=True)]
    if retention(outcomes, baseline) is None:
        return None
    drawn = _resample(columns, seed, resamples)
    defined = drawn[(drawn[:, :, 1] > 0).all(axis=1)]
    differences = ((defined[:, :, 0] - defined[:, :, 2]) / defined[:, :, 1]).mean(axis=1)
    low, high = np.percentile(differences, _TAILS)
    return float(low), float(high)


def _paired(outcomes: Outcomes, baseline: Outcomes) -> list[NDArray[np.float64]]:
    """Per task an array [questions, 2]: the variant's outcome and the baseline's."""
    if {task: len(right) for task, right in outcomes.items()} != {task: len(right) for task, right in baseline.items()}:
        raise QuotaError("retention compares answers to the same questions; evaluate both on one suite")
    return [
        np.stack([np.asarray(right, dtype=float), np.asarray(baseline[task], dtype=float)], axis=1)
        for task, right in outcomes.items()
    ]


def _resample(columns: list[NDArray[np.float64]], seed: int, resamples: int) -> NDArray[np.float64]:
    """Accuracies [resamples, tasks, variants]; each task of `columns` is [questions, variants]."""
    generator = np.random.default_rng(seed)
    drawn = []
    for task in columns:
        questions = generator.integers(len(task), size=(resamples, len(task)))
        drawn.append(task[questions].mean(axis=1))
    return np.stack(drawn, axis=1)


def _mean_ratio(accuracies: NDArray[np.float64]) -> list[float | None]:
    """Mean over tasks of variant / baseline for each resample of [resamples, tasks, 2]."""
    return [float((sample[:, 0] / sample[:, 1]).mean()) if (sample[:, 1] > 0).all() else None for sample in accuracies]
