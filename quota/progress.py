"""How far long work has come: what is called with it, and what adds it up."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with what is done so far, and the whole."""
Steps = Callable[[str, int, int], None]
"""Called with the name of a step, how much of it is done, and how much there is."""


def silent(step: str, done: int, total: int) -> None:
    """`Steps` that tells nobody."""


class Meter:
    """Adds up work of several parts for one bar of progress. All of it is planned before the first part ends."""

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress
        self._done = self._total = 0

    def plan(self, work: int) -> None:
        """There is so much more to do."""
        self._total += work

    def add(self, work: int) -> None:
        """So much more is done."""
        self._done += work
        if self._progress is not None:
            self._progress(self._done, self._total)
