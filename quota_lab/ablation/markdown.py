"""Tables of `quota ablate`, in Markdown."""

from __future__ import annotations

import statistics

from quota_lab.ablation.table import Ablation, mean_interval


def markdown(ablation: Ablation) -> str:
    """A row a setting, a column a score: the mean over seeds, and its 95% interval."""
    names = list(ablation.rows[0].scores)
    lines = [f"| {ablation.table} | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for row in ablation.rows:
        cells = (_cell(found, 1 if "%" in name else 3) for name, found in row.scores.items())
        lines.append(f"| {row.label} | {' | '.join(cells)} |")
    size = ", ".join(f"{name} {value}" for name, value in ablation.subject.size().items())
    return "\n".join([*lines, "", f"{ablation.subject.name}: {size}; {ablation.seeds} seeds; 95% intervals."])


def _cell(found: list[float], digits: int) -> str:
    low, high = mean_interval(found)
    return f"{statistics.mean(found):.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"
