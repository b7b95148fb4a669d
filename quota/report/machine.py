"""Tables of `quota doctor` and `quota bench`."""

from __future__ import annotations

from rich import box
from rich.table import Table

from quota.bench.report import UNITS, Report, Row
from quota.doctor import Diagnosis, Examination
from quota.models.support import PROMPTS, RUNS, VIDEO


def doctor_tables(examination: Examination) -> list[Table]:
    """This machine, its backends, and the supported models."""
    return [_machine_table(examination), _backends_table(examination), _families_table(examination)]


def _machine_table(examination: Examination) -> Table:
    table = Table(title="This machine", show_header=False, box=box.SIMPLE_HEAD)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_row("processor", f"{examination.processor}, {examination.threads} threads")
    table.add_row("instructions", " ".join(examination.instructions) or "not told by the system")
    table.add_row("accelerators", ", ".join(examination.accelerators) or "none that torch can use")
    table.add_row("versions", ", ".join(f"{name} {version}" for name, version in examination.versions.items()))
    if examination.forced is not None:
        table.add_row("asked for", examination.forced)
    for device, name in examination.chosen.items():
        table.add_row(f"taken on {device}", name)
    return table


def _backends_table(examination: Examination) -> Table:
    table = Table(title="Operator backends", box=box.SIMPLE_HEAD)
    for name in ("backend", "runs here", "integer sums"):
        table.add_column(name)
    for backend in examination.backends:
        table.add_row(backend.name, _running(backend), _exactness(backend))
    return table


def _families_table(examination: Examination) -> Table:
    caption = f"Each tested with {', '.join((*PROMPTS, *RUNS))}; sdpa and eager attention."
    table = Table(title="Supported models", caption=caption, box=box.SIMPLE_HEAD)
    for name in ("family", "class in transformers", VIDEO):
        table.add_column(name, no_wrap=True)
    for architecture, family in examination.families.items():
        table.add_row(family.title, architecture, "yes" if VIDEO in family.prompts else "-")
    return table


def _running(backend: Diagnosis) -> str:
    return "yes" if backend.why_not is None else f"no: {backend.why_not}"


def _exactness(backend: Diagnosis) -> str:
    if backend.exact is None:
        return "-"
    return "equal the reference's" if backend.exact else "DIFFER from the reference's"


def bench_tables(report: Report) -> list[Table]:
    """A table for every job and baseline, one line a row of the report, in units that a person reads."""
    kinds = dict.fromkeys((row.job, row.baseline) for row in report.rows)
    return [_bench_table(report, *kind) for kind in kinds]


def _bench_table(report: Report, job: str, baseline: str) -> Table:
    title = f"{job} against {baseline} ({report.device}, {report.threads} threads)"
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for name in ("shape", "backend", "value", "baseline", "ratio"):
        table.add_column(name, justify="left" if name in ("shape", "backend") else "right")
    for row in report.rows:
        if (row.job, row.baseline) == (job, baseline):
            values = quantity(row, row.value), quantity(row, row.baseline_value)
            table.add_row(row.shape, row.backend, *values, f"{row.ratio:.2f}x")
    return table


def quantity(row: Row, value: float) -> str:
    """A value of this row with its unit: 0.00123 s -> "1.23 ms"."""
    unit = UNITS[row.job]
    if unit == "s":
        return f"{1e3 * value:.3g} ms" if value < 1 else f"{value:.2f} s"
    return f"{value / 1e6:.0f} MB" if unit == "bytes" else f"{value:.1f} {unit}"
