"""The tables of `quota demo`."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from quota.report.tables import WholeTable, percent, percent_range, size
from quota_lab.demo.run import Demo

VARIANTS = {
    "full": "full precision",
    "quantized": "quantised only",
    "pruned": "pruned only",
    "quota": "QUOTA",
}


def demo_tables(demo: Demo) -> list[Table]:
    """Some answers, the accuracies of the four variants, and what each of them costs."""
    return [_answers_table(demo), _variants_table(demo)]


def _answers_table(demo: Demo) -> Table:
    table = WholeTable("Questions about pictures")
    for name in ("question", "expected", "full precision", "QUOTA"):
        table.add_column(name)
    for shown in demo.shown:
        table.add_row(shown.question, shown.expected, shown.full, shown.quota)
    return table


def _variants_table(demo: Demo) -> Table:
    """A column a variant: there are more figures than variants."""
    variants = list(demo.variants.values())
    first = variants[0].evaluation
    title = f"The reference model, {first.questions} questions, operators: {demo.backend}"
    table = WholeTable(title, narrow=True)
    table.add_column("accuracy in %", no_wrap=True)
    for name in ("majority answer", *(VARIANTS[name] for name in demo.variants)):
        table.add_column(name.replace(" ", "\n"), justify="right")
    for task, majority in first.majority.items():
        table.add_row(task, percent(majority), *(percent(variant.evaluation.accuracy[task]) for variant in variants))
    table.add_section()

    def add(title: str, cells: Iterable[str]) -> None:
        table.add_row(title, "", *cells)

    add("average", (percent(variant.evaluation.average) for variant in variants))
    add("  95% interval", (percent_range(variant.evaluation.interval) for variant in variants))
    add("retention", (percent(demo.retention(name)) for name in demo.variants))
    add("  95% interval", (percent_range(demo.retention_interval(name)) for name in demo.variants))
    table.add_section()
    tokens = [variant.footprint.visual_tokens_per_layer for variant in variants]
    add("tokens by layer", (" ".join(map(str, layers)) for layers in tokens))
    add("KV cache", (size(variant.footprint.kv_bytes) for variant in variants))
    add("weights on disk", (size(variant.disk_bytes) for variant in variants))
    add("answer tokens/s", (f"{variant.evaluation.tokens_per_second:.0f}" for variant in variants))
    table.caption = "Tokens: visual ones that enter the layer. KV cache: after prefill; 16-bit if not quantised."
    return table
