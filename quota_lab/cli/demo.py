"""`quota demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quota.cli.app import Backend, JsonFile, app, console, notes, write_json


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the checkpoint and the picture.")] = Path("demo"),
    json_file: JsonFile = None,
    questions: Annotated[
        int | None, typer.Option(min=1, help="Questions of each task; the default lets it end in minutes.")
    ] = None,
    backend: Backend = None,
) -> None:
    """Compress the shipped model, save it, load it back, and compare it with three other variants.

    Prints one table (full precision, quantised only, pruned only, QUOTA) and draws kept_tokens.png.

    ```text
    quota demo
    quota demo --out demo --json demo/demo.json --questions 100
    ```
    """
    from quota.report.progress import progress_steps
    from quota_lab.demo.run import QUESTIONS, run_demo
    from quota_lab.demo.tables import demo_tables

    with progress_steps() as progress:
        result = run_demo(out, questions or QUESTIONS, progress)
    for table in demo_tables(result):
        console.print(table)
    notes.print(f"kept tokens: {result.picture}; checkpoint: {result.checkpoint}; {result.seconds:.0f} s in all")
    write_json(json_file, result.figures())
