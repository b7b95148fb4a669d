"""`quota report`: a checkpoint as one page to read, keep and pass on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quota.cli.app import Backend, app, notes

LIMIT = 100
"""Questions of each task by default: what lets a report of the reference model end within minutes."""


@app.command()
def report(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A checkpoint that `quota compress` wrote.")],
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Questions to ask it: a folder with questions.jsonl and its images, or one of the shipped suites; by "
            "default none, but for a model that ships with a suite that one.",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The original, to compare with; known for a model that is shipped."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="HTML", help="Where to write; default: OUT.html, beside the folder."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Only the first N questions of each task.")] = LIMIT,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Questions answered at once; default: 32, on a GPU 128.")
    ] = None,
    backend: Backend = None,
) -> None:
    """Write one HTML file that says what OUT is, what it costs, how well it answers and what it looked at.

    The file stands alone and loads nothing. With a suite there are accuracy, retention (with --baseline) and twelve
    questions with their pictures: they are in the file, so think of whom you give it to. It does not lie inside OUT for
    the same reason.

    ```text
    quota report small/ --suite my-questions/ -o report.html
    quota report small/ --suite my-questions/ --baseline llava-hf/llava-1.5-7b-hf
    ```
    """
    from quota.checkpoint.described import described
    from quota.checkpoint.named import label, own_suite, shipped_as, suite_folder
    from quota.report.page.asked import Suite
    from quota.report.page.gather import gather
    from quota.report.page.render import refuse_place, write_report
    from quota.report.page.svg import require_extra
    from quota.report.progress import progress_steps
    from quota.report.tables import size
    from quota.samples import first_of_each_task, read_samples

    require_extra()
    place = out.resolve()
    target = output or place.with_name(f"{place.name}.html")
    refuse_place(target)
    config = described(out).config
    original, suite = shipped_as(config), suite or own_suite(config)
    if baseline is not None:
        # Before the minutes of questions, not after them.
        label(baseline)
    asked = None
    if suite is not None:
        folder = suite_folder(suite)
        whole = read_samples(folder)
        name = suite if folder != Path(suite) else folder.resolve().name
        asked = Suite(name, first_of_each_task(whole, limit), len(whole))
    with progress_steps() as progress:
        found = gather(out, asked, baseline or original, batch_size, progress)
    written = write_report(found, target)
    notes.print(f"written: {target} ({size(written)})")
    if asked is None:
        notes.print("no questions were asked; --suite FOLDER adds accuracy, retention and pictures")
    elif found.asked is not None and found.asked.baseline is None:
        notes.print("retention was not measured; --baseline MODEL names the original")
