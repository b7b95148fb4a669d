"""Progress bars with an estimate, on the error stream: what a command prints can still be piped.

    left = elapsed * (total - done) / done

counts everything since the start. Steps can be minutes long, and a speed over the last seconds would see none of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text


def left(done: float, total: float, elapsed: float) -> str:
    """The time that the rest will take, as h:mm:ss; a dash as long as nothing is done."""
    if not done:
        return "-"
    return str(timedelta(seconds=math.ceil(elapsed * (total - done) / done)))


class _Left(ProgressColumn):
    """`left` of a bar, as it was when it last moved."""

    def render(self, task: Task) -> Text:
        return Text(left(task.completed, task.total or 0, task.fields["elapsed_then"]), style="progress.remaining")


@contextmanager
def progress_steps() -> Iterator[Callable[[str, int, int], None]]:
    """Yield `update(step, done, total)`, which draws a bar a step; the bars stand until the block ends."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        _Left(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        started = {}
        last = time.monotonic()

        def update(step: str, done: int, total: int) -> None:
            nonlocal last
            if step not in started:
                # One step follows the other: this one has been running since the last was heard of.
                started[step] = bars.add_task(step, elapsed_then=0.0), last
            bar, began = started[step]
            last = time.monotonic()
            bars.update(bar, completed=done, total=total, elapsed_then=last - began)

        yield update


@contextmanager
def progress_bar(step: str) -> Iterator[Callable[[int, int], None]]:
    """Yield `update(done, total)` of a single step."""
    with progress_steps() as update:
        # The bar stands from the start: loading the first batch may take a while.
        update(step, 0, 1)
        yield lambda done, total: update(step, done, total)
