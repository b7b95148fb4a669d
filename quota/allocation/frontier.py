"""What budgets buy: the expected error of the best schedule for each, against arithmetic, time and KV bytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from quota.allocation.budget import Budget
from quota.allocation.choose import Expected, choose
from quota.allocation.measurements import Measurements
from quota.errors import QuotaError
from quota.pruning.schedule import Schedule, layer_work

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1)
"""Of prefill arithmetic, for which the best schedule is looked for."""


@dataclass(frozen=True)
class Point:
    """What a schedule costs a typical prompt, and what it does to the answer."""

    layers: tuple[int, ...]
    counts: tuple[int, ...]
    """Visual tokens left after each."""
    compute: float
    """Prefill arithmetic of visual tokens, relative to keeping all."""
    milliseconds: float | None
    """Of the prefill; None if no machine was timed."""
    kv_bytes: float
    """After it."""
    error: float
    """Expected, in nats (quota/allocation/drops.py)."""
    measured: bool
    """Whether that was measured on the whole schedule, and not put together from single cuts."""

    def figures(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def point(schedule: Schedule, measured: Measurements, text_config: Any) -> Point:
    """That of one schedule. QuotaError for one that the measurements do not reach."""
    tokens, depth, clock = measured.reference_tokens, measured.depth, measured.clock
    expected, work = Expected(measured), layer_work(tokens, text_config)
    return Point(
        schedule.layers,
        tuple(schedule.counts(tokens)),
        schedule.compute(tokens, depth, text_config),
        None if clock is None else clock.milliseconds(schedule, tokens, work),
        measured.cache.bytes(schedule, tokens, depth),
        expected(schedule),
        expected.measured(schedule),
    )


def frontier(measured: Measurements, text_config: Any) -> list[Point]:
    """From all tokens to the smallest of `SHARES` in reach; what a cheaper one does better or as well is left out."""
    found = [point(Schedule(), measured, text_config)]
    for share in SHARES:
        try:
            schedule = choose(Budget(compute=share), measured, text_config)
        except QuotaError:
            # Out of reach, and so are those below it.
            break
        found.append(point(schedule, measured, text_config))
    return [one for place, one in enumerate(found) if all(one.error < other.error for other in found[place + 1 :])]
