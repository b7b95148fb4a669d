"""Who goes first: answers that somebody waits for. What is computed for comparison stands still meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Event

_LOOK = 0.1
"""Seconds after which somebody who gives way looks whether he is still wanted."""


class Precedence:
    """Shared by all answers of one model."""

    def __init__(self) -> None:
        self._first = 0
        self._changed = Condition()

    @contextmanager
    def first(self) -> Iterator[None]:
        """Inside the block, others give way."""
        with self._changed:
            self._first += 1
        try:
            yield
        finally:
            with self._changed:
                self._first -= 1
                self._changed.notify_all()

    def give_way(self, cancelled: Event) -> float:
        """Wait until nobody goes first, or it is `cancelled`; returns the seconds."""
        began = time.perf_counter()
        with self._changed:
            while self._first and not cancelled.is_set():
                self._changed.wait(_LOOK)
        return time.perf_counter() - began
