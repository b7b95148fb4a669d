"""Every table that a command prints, in a terminal of 80 columns: nothing in it is cut."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.table import Table
from support.documents import ROOT

from quota import ops
from quota.allocation.frontier import Point
from quota.evaluation import Evaluation, Footprint
from quota.pruning.recipe import PruningRecipe
from quota.report.doctor import doctor_tables, examine
from quota.report.inspection import Inspection, PackedWeights
from quota.report.tables import WholeTable, evaluation_table, frontier_table, inspection_table
from quota.scheme import QuantizationScheme
from quota_lab.bench.report import UNITS, Report, Row
from quota_lab.bench.tables import bench_tables
from quota_lab.demo.run import Demo, Shown, Variant
from quota_lab.demo.tables import demo_tables
from quota_lab.testbeds.llm import Outcome
from quota_lab.testbeds.tables import perplexity_table

TASKS = ("existence", "attributes", "relations", "choice", "position", "reading")
SCHEME = QuantizationScheme()
# As many layers as a 7-billion-parameter model has, and a layout of 576 tokens.
RECIPE = PruningRecipe(
    layers=(-1, 3, 6, 9, 12, 16),
    keep_ratios=(0.95, 0.8, 0.65, 0.5, 0.4, 0.3),
    keep=0.3,
    sensitivities=(0.1,) * 6,
    reference_tokens=576,
    scheme=SCHEME,
    model_fingerprint="f" * 64,
    samples=128,
    versions={"quota": "0.1.0", "torch": "2.13.0+cu130", "transformers": "5.23.0"},
)


def evaluation(wrong: int) -> Evaluation:
    """100 questions of each task, of which the first `wrong` are answered wrong."""
    outcomes = {task: [number >= wrong for number in range(100)] for task in TASKS}
    return Evaluation(outcomes, dict.fromkeys(TASKS, 0.5), ["yes"] * 600, 1200, 10.0)


def demo() -> Demo:
    # Intervals as wide as they come: 100.0-100.0, and retention above 100.
    variants = {
        name: Variant(evaluation(wrong), Footprint([2880] * 32, 1_587_200), 18_900_000)
        for name, wrong in {"full": 1, "quantized": 0, "pruned": 2, "quota": 0}.items()
    }
    shown = [Shown("What does the sign at the left of the tall red house say?", "bakery", "bakery", "backery")]
    return Demo(variants, RECIPE, shown, Path("kept_tokens.png"), Path("small"), "linear: cpu, reference", 300.0)


def tables() -> Iterator[tuple[str, Table]]:
    """Name, table, of every kind, with the widest that really stands there."""
    yield "eval", evaluation_table(evaluation(0), "llava-hf/llava-1.5-7b-hf on my-questions/")
    inspection = Inspection(
        RECIPE, SCHEME, PackedWeights(224, 6_476_005_376, 3_440_000_000), 10**10, [576] * 32, prefill_flops_ratio=0.4
    )
    yield "inspect", inspection_table(inspection, "a/folder/whose/name/is/longer/than/one/would/like/it/to/be/small")
    layers = (-1, 3, 6, 9, 12, 16)
    counts = (520, 440, 360, 300, 240, 180)
    points = [Point(layers, counts, 1.0, 1234.5, 123_456_789.0, 12.3456, whole) for whole in (True, False)]
    yield "frontier", frontier_table(points, points[0])
    for number, table in enumerate(doctor_tables(examine())):
        yield f"doctor {number}", table
    for file in sorted((ROOT / "docs" / "benchmarks").glob("*.json")):
        figures = json.loads(file.read_text())
        # Older files hold jobs that are not measured any more, and those of GPUs are of another form.
        kept = [row for row in figures["rows"] if row.get("job") in UNITS and "baseline_value" in row]
        rows = [Row(**{key: value for key, value in row.items() if key != "ratio"}) for row in kept]
        for number, table in enumerate(bench_tables(Report(rows, figures["device"], figures.get("threads", 1)))):
            yield f"bench {file.stem} {number}", table
    for number, table in enumerate(demo_tables(demo())):
        yield f"demo {number}", table
    losses = torch.rand(50, generator=torch.Generator().manual_seed(0)).tolist()
    outcome = Outcome("b" * 64, SCHEME, losses, [1.3 * loss for loss in losses], ops.Usage())
    yield "testbed", perplexity_table(outcome, "Qwen2.5-Coder-1.5B-Instruct, Q4_K_M on Mark.Twain-Tom.Sawyer.txt")


TABLES = dict(tables())


def rendered(table: Table, width: int) -> str:
    shown = io.StringIO()
    Console(file=shown, width=width, markup=False).print(table)
    return shown.getvalue()


@pytest.mark.parametrize("name", TABLES)
def test_nothing_is_cut_at_80_columns(name: str) -> None:
    table = TABLES[name]
    shown = rendered(table, 80)
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    cells = [str(cell) for column in table.columns for cell in (column.header, *column.cells)]
    assert len(cells) > 4
    # Not even broken: words, and so figures, stand in one line.
    words = {word for cell in cells for word in cell.split()}
    assert words <= set(shown.split())


@pytest.mark.parametrize("name", TABLES)
def test_in_a_narrow_terminal_words_are_broken_and_not_cut(name: str) -> None:
    assert "…" not in rendered(TABLES[name], 40)


def test_a_word_wider_than_its_column_goes_on_in_the_next_line() -> None:
    table = WholeTable("figures")
    table.add_column("interval")
    table.add_row("99.9-101.3")
    assert "".join(rendered(table, 9).split()).endswith("99.9-101.3")


def test_every_table_is_a_whole_one() -> None:
    makers = {file for package in ("quota", "quota_lab") for file in (ROOT / package).rglob("*.py")}
    makers = {file for file in makers if "= Table(" in file.read_text() and "rich" in file.read_text()}
    assert makers == set()
