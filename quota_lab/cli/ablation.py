"""`quota ablate`: tables of what each part of the quantiser is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quota.cli.app import Backend, JsonFile, app, write_json
from quota.errors import QuotaError


@app.command()
def ablate(
    table: Annotated[
        str, typer.Argument(metavar="TABLE", help="modules, methods, schemes, groups, head, kv-bits, calibration.")
    ],
    on: Annotated[str, typer.Option(metavar="SUBJECT", help="`reference` or `smollm2`.")] = "reference",
    seeds: Annotated[int, typer.Option(help="Repetitions, with other questions and other calibration data.")] = 3,
    questions: Annotated[int, typer.Option(min=1, help="reference: questions of each of the six tasks.")] = 100,
    windows: Annotated[int, typer.Option(min=1, help="smollm2: windows of 1024 tokens to score.")] = 16,
    prose: Annotated[Path | None, typer.Option(metavar="FILE", help="smollm2: the text to score.")] = None,
    calibration: Annotated[Path | None, typer.Option(metavar="FILE", help="smollm2: a text to calibrate on.")] = None,
    cells: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where outcomes are kept: run again to go on after an interruption.")
    ] = Path("ablation"),
    json_file: JsonFile = None,
    backend: Backend = None,
) -> None:
    """Print a table in Markdown: mean and 95% interval over seeds (Student's t) of retention or of perplexity.

    On `reference`, errors of the decoder's hidden states stand beside it, for visual and for text tokens apart.

    ```text
    quota ablate modules
    quota ablate kv-bits --on smollm2 --prose tom-sawyer.txt --calibration sherlock-holmes.txt
    ```

    Outcomes are shared between tables, and kept: an interrupted table goes on where it stopped. With another version of
    the code they are measured anew.
    """
    from quota.report.progress import progress_steps
    from quota_lab.ablation import Reference, SmolLM2, Subject
    from quota_lab.ablation import ablate as measure
    from quota_lab.ablation.markdown import markdown

    subject: Subject
    if on == "reference":
        subject = Reference(questions)
    elif on != "smollm2":
        raise QuotaError(f"there is nothing called {on!r} to measure on; known are reference and smollm2")
    elif prose is None or calibration is None:
        raise QuotaError("smollm2 needs two texts: --prose FILE and --calibration FILE")
    else:
        subject = SmolLM2(prose, calibration, windows)
    with progress_steps() as progress:
        ablation = measure(table, subject, seeds, cells, progress)
    typer.echo(markdown(ablation))
    write_json(json_file, ablation.figures())
