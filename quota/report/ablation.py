"""Tables of `quota ablate`, in Markdown."""

from __future__ import annotations

from quota.ablation.table import Ablation


def markdown(ablation: Ablation) -> str:
    """A row a setting: mean, 95% interval, and every seed's own score."""
    digits = 1 if "%" in ablation.subject.score_name else 3
    lines = [
        f"| {ablation.table} | {ablation.subject.score_name} | 95% interval | by seed |",
        "|---|---:|---:|---:|",
    ]
    for row in ablation.rows:
        low, high = (f"{bound:.{digits}f}" for bound in row.interval)
        scores = " ".join(f"{score:.{digits}f}" for score in row.scores)
        lines.append(f"| {row.label} | {row.mean:.{digits}f} | {low}-{high} | {scores} |")
    size = ", ".join(f"{name} {value}" for name, value in ablation.subject.size().items())
    return "\n".join([*lines, "", f"{ablation.subject.name}: {size}; {ablation.seeds} seeds."])
