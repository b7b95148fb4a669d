"""Tables of `quota testbed`: one for the terminal, one in Markdown."""

from __future__ import annotations

from rich.table import Table

from quota.report.tables import WholeTable
from quota_lab.ablation.table import mean_interval
from quota_lab.testbeds import dinov2, llm
from quota_lab.testbeds.perplexity import ratio_interval


def perplexity_table(outcome: llm.Outcome, title: str) -> Table:
    """Full precision, then the quantised model with its ratio."""
    table = WholeTable(title)
    table.add_column("")
    for name in ("perplexity", "ratio", "95% interval"):
        table.add_column(name, justify="right")
    low, high = ratio_interval(outcome.losses, outcome.full_losses)
    table.add_row("full precision", f"{outcome.full_perplexity:.2f}", "1.000", "-")
    table.add_row(outcome.scheme.name, f"{outcome.perplexity:.2f}", f"{outcome.ratio:.3f}", f"{low:.3f}-{high:.3f}")
    return table


def errors_markdown(outcome: dinov2.Outcome) -> str:
    """A row a method, a column a kind of layer: mean over seeds, and its 95% interval."""
    kinds = list(next(iter(outcome.errors.values())))
    lines = [f"| relative error | {' | '.join(kinds)} |", "|---|" + "---:|" * len(kinds)]
    for method, found in outcome.errors.items():
        cells = (f"{sum(errors) / len(errors):.3f} ({_range(errors)})" for errors in (found[kind] for kind in kinds))
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"dinov2: {outcome.crops} crops; {outcome.seeds} seeds; 95% intervals."])


def _range(errors: list[float]) -> str:
    low, high = mean_interval(errors)
    return f"{low:.3f}-{high:.3f}"
