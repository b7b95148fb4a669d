"""Tables of `quota testbed`."""

from __future__ import annotations

from rich import box
from rich.table import Table

from quota.testbeds.perplexity import ratio_interval
from quota.testbeds.smollm2 import Outcome


def perplexity_table(outcome: Outcome, title: str) -> Table:
    """Full precision, then the quantised model with its ratio."""
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("")
    for name in ("perplexity", "ratio", "95% interval"):
        table.add_column(name, justify="right")
    low, high = ratio_interval(outcome.losses, outcome.full_losses)
    table.add_row("full precision", f"{outcome.full_perplexity:.2f}", "1.000", "-")
    table.add_row(outcome.scheme.name, f"{outcome.perplexity:.2f}", f"{outcome.ratio:.3f}", f"{low:.3f}-{high:.3f}")
    return table
