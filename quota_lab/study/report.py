"""A table as JSON (all of it), Markdown (what a reader wants) and a picture (quota_lab/study/picture.py).

The first two name the code that was measured: the version of quota, and twelve digits of the digest that the ledger of
sealed questions and the keys of outcomes hold. An installed package knows no commit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quota.errors import QuotaError
from quota.files import read_json, write_atomically
from quota.report.plot import require_matplotlib
from quota.report.tables import percent, percent_range
from quota.version import __version__
from quota_lab.digest import code_digest
from quota_lab.study.keys import OUTSIDE
from quota_lab.study.picture import picture
from quota_lab.study.run import Row, Study
from quota_lab.study.tables import Table

_FACTS = (
    "Retention is the mean over tasks of accuracy / full-precision accuracy, averaged over calibration seeds; the 95% "
    "interval is a paired bootstrap over questions, the spread the lowest and highest single seed. Compute is the "
    "prefill arithmetic of the visual tokens in the decoder, relative to keeping all of them. Tokens are those of one "
    "image entering each decoder layer, for the first seed."
)


def measured_code() -> dict[str, str]:
    """Which code makes the figures: quota's version, and the first 12 digits of the digest of what decides them."""
    return {"quota": __version__, "code": code_digest(OUTSIDE)[:12]}


def write_report(folder: Path, name: str, command: str, table: Table, study: Study, rows: Sequence[Row]) -> None:
    """Write NAME.json, NAME.md and NAME.png to `folder`. Raises QuotaError without matplotlib, before anything else."""
    require_matplotlib()
    measured = figures(command, table, study, rows)
    drawn = picture([("", measured)])
    write_atomically(folder / f"{name}.json", json.dumps(measured, indent=1) + "\n")
    write_atomically(folder / f"{name}.png", drawn)
    write_atomically(folder / f"{name}.md", markdown(name, command, table, study, rows))


def figures(command: str, table: Table, study: Study, rows: Sequence[Row]) -> dict[str, Any]:
    """Everything that was measured, and on what."""
    measured_on = {
        key: None if value is None else value if isinstance(value, int) else str(value)
        for key, value in asdict(study).items()
    }
    return {
        "title": table.title,
        "command": command,
        **measured_code(),
        "study": measured_on,
        "against": table.against,
        "rows": [
            {"name": row.name, "variant": table.rows[row.name].model_dump(mode="json", exclude={"seed"})}
            | asdict(row.figure)
            | {"prefill_seconds": row.prefill}
            for row in rows
        ],
    }


def read_table(file: Path) -> dict[str, Any]:
    """What `write_report` wrote to NAME.json. QuotaError if that is not what the file holds."""
    table = read_json(file, "table")
    rows, needed = table.get("rows"), {"name", "retention", "interval", "spread", "cost", "prefill_seconds"}
    told = isinstance(rows, list) and all(isinstance(row, dict) and needed <= row.keys() for row in rows)
    if not told or not isinstance(table.get("title"), str):
        raise QuotaError(f"{file} is no table of the study; give the JSON file of one")
    return table


def markdown(name: str, command: str, table: Table, study: Study, rows: Sequence[Row]) -> str:
    """The table in Markdown, with the command that made it."""
    tasks = list(rows[0].figure.accuracy)
    timed = any(row.prefill is not None for row in rows)
    head = ["", *tasks, "retention", "95% interval", "spread", f"against {table.against}", "compute"]
    head += ["prefill ms"] if timed else []
    lines = [_line(["---"] + ["---:"] * (len(head) - 1))]
    for row in rows:
        found = row.figure
        cells = [row.name, *(percent(found.accuracy[task]) for task in tasks)]
        cells += [percent(found.retention), percent_range(found.interval), percent_range(found.spread)]
        cells += [_difference(row), percent(found.cost)]
        cells += ["-" if row.prefill is None else f"{1000 * row.prefill:.1f}"] if timed else []
        lines.append(_line(cells))
    questions = "all questions" if study.limit is None else f"{study.limit} questions of each task"
    part = f"{study.questions} half" if study.questions in ("development", "reported") else f"{study.questions} part"
    cuts = [f"- {row.name}: {' '.join(map(str, row.figure.tokens_per_layer[0]))}" for row in rows]
    code = measured_code()
    return "\n".join(
        [
            f"# {table.title}",
            "",
            f"`{command}`: {study.model}, {questions} of the {part}, {study.seeds} calibration seeds. In percent.",
            f"Measured by quota {code['quota']}, code {code['code']}.",
            "",
            _line(head),
            *lines,
            "",
            _FACTS,
            "",
            f"![Retention over compute]({name}.png)",
            "",
            "Visual tokens by layer:",
            "",
            *cuts,
            "",
        ]
    )


def _difference(row: Row) -> str:
    found = row.figure
    if found.against is None or found.against_interval is None:
        return "-"
    low, high = found.against_interval
    return f"{100 * found.against:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
