"""Whether other processes ran while something was timed: then its figures are of no use, and the report says so."""

from __future__ import annotations

import os
import time
from pathlib import Path

_TIMES = Path("/proc/stat")
_IDLE = slice(3, 5)
"""Places of idle and waiting time in the first line of the file."""
LARGEST_SHARE = 0.05


class Others:
    """How much of the machine other processes take, from when it is made."""

    def __init__(self) -> None:
        self._busy, self._began, self._own = _busy_seconds(), time.monotonic(), _own_seconds()

    def share(self) -> float | None:
        """The share of all processors' time so far that others took, in [0, 1]; None where the system does not tell."""
        busy = _busy_seconds()
        seconds = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        if busy is None or self._busy is None or not seconds:
            return None
        others = busy - self._busy - (_own_seconds() - self._own)
        return min(1.0, max(0.0, others / seconds))


def _busy_seconds() -> float | None:
    """What all processors have worked since the start."""
    if not _TIMES.is_file():
        return None
    # Guests' time is in the user's already.
    times = [int(value) for value in _TIMES.read_text().splitlines()[0].split()[1:9]]
    return (sum(times) - sum(times[_IDLE])) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """What this process and those that it has waited for have worked."""
    return sum(os.times()[:4])
