"""`quota study`: the tables of docs/study/, each by one command."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quota.cli.app import Backend, Device, app, console, notes
from quota.errors import QuotaError

if TYPE_CHECKING:
    from quota_lab.study.run import Study

SCRATCH = Path(".study/tables")
"""Where tables go that nobody has decided to publish: later ones replace earlier ones."""


@app.command()
def study(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which table; `list` names them.")],
    model: Annotated[str, typer.Option(metavar="MODEL", help="A hub id, a folder, or `reference`.")] = "reference",
    suite: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Questions; default: the reference suite.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Questions to calibrate on; `reference` draws its own.")
    ] = None,
    half: Annotated[
        str,
        typer.Option(
            help="Questions: `reported`, `development` (may be tuned on, not reported), `sealed` (new, asked by one "
            "version of the code), or `all`."
        ),
    ] = "reported",
    draw: Annotated[
        int | None, typer.Option(metavar="SEED", help="Draw the sealed questions of `reference` by this seed.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N questions of each task.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Calibration sets.")] = 5,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where NAME.json, .md and .png go.")] = SCRATCH,
    publish: Annotated[
        bool, typer.Option("--publish", help="Replace a table that stands in another folder than the default one.")
    ] = False,
    cache: Annotated[Path, typer.Option(metavar="FOLDER", help="Outcomes and checkpoints so far.")] = Path(".study"),
    timed: Annotated[bool, typer.Option("--timed", help="Also measure prefill times, on an idle machine.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check what is named, print the plan, and end.")] = False,
    backend: Backend = None,
    device: Device = None,
) -> None:
    """Measure one table of the study: variants of a compressed model on the same questions, with intervals.

    What is interrupted goes on where it stopped.

    ```text
    quota study stage-wise
    quota study methods --timed
    quota study keep --half development --limit 50 --seeds 1
    quota study stage-wise --half sealed --draw 1 --limit 200
    quota study stage-wise --out docs/study --publish
    quota study stage-wise --model llava-hf/llava-1.5-7b-hf --suite vqa/ --calibration train.jsonl --dry-run
    ```
    """
    from quota.report.plot import require_matplotlib
    from quota.report.progress import progress_steps
    from quota.samples import fingerprint
    from quota_lab.digest import code_digest
    from quota_lab.study.halves import as_half
    from quota_lab.study.keys import OUTSIDE
    from quota_lab.study.report import markdown, write_report
    from quota_lab.study.run import Study, plan_lines, run_table
    from quota_lab.study.sealed import claim
    from quota_lab.study.tables import TABLES, table

    if name == "list":
        for known, (title, _, _) in TABLES.items():
            typer.echo(f"{known}: {title}")
        return
    chosen = table(name)
    what = Study(model, suite, calibration, as_half(half), limit, seeds, draw)
    if not publish and out != SCRATCH and (out / f"{name}.json").exists():
        raise QuotaError(f"{out / name}.json is a table already; give another folder, or --publish to replace it")
    if dry_run:
        for line in plan_lines(chosen, what):
            typer.echo(line)
        return
    require_matplotlib()
    if what.questions == "sealed":
        drawn = f"seed {draw}" if suite is None else suite.name
        claim(out, name, fingerprint(what.samples()), drawn, code_digest(OUTSIDE))
    with progress_steps() as progress:
        rows = run_table(chosen, what, cache, timed, progress)
    command = _command(name, what, timed)
    write_report(out, name, command, chosen, what, rows)
    console.print(markdown(name, command, chosen, what, rows))
    notes.print(f"written to {out / name}.md, .json and .png")


@app.command()
def curves(
    tables: Annotated[
        list[str], typer.Argument(metavar="[NAME=]FILE", help="JSON files of tables, under the names of their models.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The picture, a PNG.")],
    bench: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also what `quota bench e2e --json` wrote, as bars.")
    ] = None,
) -> None:
    """Draw tables of `quota study` beside each other: retention against arithmetic, and against prefill time if timed.

    Tables of one name share a panel.

    ```text
    quota curves reference=docs/study/methods.json -o curves.png
    ```
    """
    from quota.files import write_atomically
    from quota_lab.study.gains import Gains
    from quota_lab.study.picture import picture
    from quota_lab.study.report import read_table

    named = [one.rpartition("=") for one in tables]
    more = [] if bench is None else [Gains.read(bench)]
    write_atomically(out, picture([(name, read_table(Path(file))) for name, _, file in named], *more))
    notes.print(f"written to {out}")


def _command(name: str, what: Study, timed: bool) -> str:
    """The command that measures this again: all that changes a figure, and no folders of this machine."""
    from quota.ops.device import chosen

    words = ["quota", "study", name]
    for option, value in (("--model", what.model), ("--suite", what.suite), ("--calibration", what.calibration)):
        if value not in (None, "reference"):
            words += [option, Path(value).name if isinstance(value, Path) else value]
    words += ["--half", what.questions] if what.questions != "reported" else []
    words += ["--draw", str(what.draw)] if what.draw is not None else []
    words += ["--limit", str(what.limit)] if what.limit is not None else []
    words += ["--seeds", str(what.seeds)] if what.seeds != 5 else []
    words += ["--device", chosen().type] if chosen().type != "cpu" else []
    return shlex.join(words + (["--timed"] if timed else []))
