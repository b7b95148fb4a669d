"""What budgets buy."""

from __future__ import annotations

from itertools import pairwise

import pytest
from support.measured import measurements
from support.tiny_llava import LAYERS, VISUAL_TOKENS, make_model

from quota.allocation.budget import Budget
from quota.allocation.choose import choose
from quota.allocation.clock import Clock
from quota.allocation.frontier import frontier, point
from quota.allocation.measurements import Tried
from quota.pruning.schedule import Schedule

CONFIG = make_model().config.get_text_config()


def test_less_arithmetic_is_at_more_loss() -> None:
    measured = measurements()
    points = frontier(measured, CONFIG)
    assert len(points) > 5
    assert (points[0].compute, points[0].error, points[0].layers, points[0].measured) == (1.0, 0.0, (), True)
    assert all(a.error < b.error and a.compute > b.compute for a, b in pairwise(points))
    # Each is what a budget of its own arithmetic buys.
    for one in points[1:]:
        found = choose(Budget(compute=one.compute), measured, CONFIG)
        assert (found.layers, tuple(found.counts(VISUAL_TOKENS))) == (one.layers, one.counts)


def test_what_a_schedule_costs() -> None:
    schedule = Schedule((0, 2), (0.5, 0.25))
    measured = measurements(
        clock=Clock(rest=10.0, layer=2.0, cut=0.5, depth=LAYERS, full=22.0),
        tried=(Tried(layers=(0, 2), counts=(8, 4), error=0.7),),
    )
    found = point(schedule, measured, CONFIG)
    layers = LAYERS * found.compute
    assert (found.error, found.measured) == (0.7, True)
    assert found.milliseconds == pytest.approx(10 + 2 * layers + 2 * 0.5)
    assert found.kv_bytes == 2808 + 312 * (2 * 8 + 4 * 4) / LAYERS
    assert point(Schedule(), measured, CONFIG).milliseconds == 22.0
    assert point(schedule, measurements(), CONFIG).milliseconds is None
