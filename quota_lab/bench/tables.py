"""Tables of `quota doctor` and `quota bench`."""

from __future__ import annotations

from rich.table import Table

from quota.report.tables import WholeTable
from quota_lab.bench.report import UNITS, Report, Row
from quota_lab.bench.served import Served


def bench_tables(report: Report) -> list[Table]:
    """A table for every job and baseline, one line a row of the report, in units that a person reads."""
    kinds = dict.fromkeys((row.job, row.baseline) for row in report.rows)
    return [_bench_table(report, *kind) for kind in kinds]


def _bench_table(report: Report, job: str, baseline: str) -> Table:
    title = f"{job} against {baseline} ({report.device}, {report.threads} threads)"
    table = WholeTable(title)
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


def served_table(found: Served) -> Table:
    """What `quota bench vllm` found, one line a bar."""
    table = WholeTable(f"vLLM beside quota ({found.device})")
    for name in ("", "vLLM", "beside", "ratio"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("answers equal", str(found.equal), f"of {found.questions}", f"{found.equal / found.questions:.3f}")
    if found.kept is not None:
        table.add_row("kept tokens equal", "", "", f"{found.kept:.4f}")
    ratio = found.bytes_in_vllm / found.bytes_in_quota
    table.add_row(
        "cache of a prompt, bytes", str(found.bytes_in_vllm), f"{found.bytes_in_quota} counted", f"{ratio:.3f}"
    )
    ratio = found.at_once / found.at_once_dense
    table.add_row("requests at once", str(found.at_once), f"{found.at_once_dense} of 16 bits", f"{ratio:.1f}x")
    return table
