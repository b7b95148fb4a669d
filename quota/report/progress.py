"""Progress bars with an estimate, on the error stream: what a command prints can still be piped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@contextmanager
def progress_steps() -> Iterator[Callable[[str, int, int], None]]:
    """Yield `update(step, done, total)`, which draws a bar a step; the bars stand until the block ends."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        started = {}

        def update(step: str, done: int, total: int) -> None:
            if step not in started:
                started[step] = bars.add_task(step)
            bars.update(started[step], completed=done, total=total)

        yield update


@contextmanager
def progress_bar(step: str) -> Iterator[Callable[[int, int], None]]:
    """Yield `update(done, total)` of a single step."""
    with progress_steps() as update:
        # The bar stands from the start: loading the first batch may take a while.
        update(step, 0, 1)
        yield lambda done, total: update(step, done, total)
