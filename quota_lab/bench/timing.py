"""Time calls in turns: A B C A B C ..., and compare medians.

Run one after the other, each would have the machine at another temperature, clock and neighbour; in turns they share
all of that, and the median leaves out the turns in which something else ran.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def interleaved(calls: Sequence[Callable[[int], Any]], turns: int, warm_up: int = 2) -> list[float]:
    """Median seconds of each call over `turns` turns, after `warm_up` that do not count.

    A call is given the number of its turn (counted on through the warm-up), to choose data not seen lately.
    """
    seconds: list[list[float]] = [[] for _ in calls]
    for turn in range(warm_up + turns):
        for call, taken in zip(calls, seconds, strict=True):
            began = time.perf_counter()
            call(turn)
            taken.append(time.perf_counter() - began)
    return [statistics.median(taken[warm_up:]) for taken in seconds]
