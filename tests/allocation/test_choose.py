"""The schedule that a budget buys."""

from __future__ import annotations

import math
import time

import pytest
from support.measured import measurements, table
from support.tiny_llava import LAYERS, VISUAL_TOKENS, make_model

from quota.allocation.budget import Budget
from quota.allocation.choose import TRIED, Expected, best_measured, choose, compute_limit, limit_of
from quota.allocation.clock import Clock
from quota.allocation.measurements import Tried
from quota.allocation.paper import paper_schedule
from quota.allocation.table import SMALLEST, charge
from quota.errors import QuotaError
from quota.pruning.schedule import Schedule, layer_work

CONFIG = make_model().config.get_text_config()
WORK = layer_work(VISUAL_TOKENS, CONFIG)
MEASURED = measurements()


def test_it_is_the_best_of_those_that_are_measured_whole() -> None:
    errors = {layer: {12: 0.05, 8: 0.1 + layer / 100, 5: 0.2} for layer in range(-1, 4)}
    asked: list[Schedule] = []

    def error(one: Schedule) -> float:
        return len(one.layers) + one.layers[0] / 10

    def whole(schedule: Schedule) -> float:
        asked.append(schedule)
        return error(schedule)

    found = best_measured(errors, whole, 16, LAYERS, 0.3, compute_limit(0.6, LAYERS, WORK))
    assert 1 < len(asked) <= TRIED and len(set(asked)) == len(asked)
    best = min(asked, key=error)
    assert found.layers == best.layers
    assert found.counts(16) == best.counts(16)


def test_it_ends_at_the_final_ratio() -> None:
    errors = {layer: {8: 0.1, 5: 0.2} for layer in (-1, 2)}
    found = best_measured(errors, lambda one: len(one.layers), 16, LAYERS, 0.3, compute_limit(0.8, LAYERS, WORK))
    assert found.ratios[-1] == 0.3
    everything = compute_limit(1.0, LAYERS, WORK)
    assert best_measured(errors, lambda one: len(one.layers), 16, LAYERS, 1.0, everything).ratios == (1.0,)
    # A ratio that was not measured lies between two that were.
    assert best_measured(errors, lambda one: len(one.layers), 16, LAYERS, 0.4, everything).ratios[-1] == 0.4


def test_every_budget_is_kept_to() -> None:
    clock = Clock(rest=10.0, layer=1.0, cut=0.5, depth=LAYERS, full=16.0)
    measured = measurements(clock=clock)
    by_compute = choose(Budget(compute=0.4), measured, CONFIG)
    assert by_compute.compute(VISUAL_TOKENS, LAYERS, CONFIG) <= 0.4
    in_time = choose(Budget(milliseconds=13.0), measured, CONFIG)
    assert clock.milliseconds(in_time, VISUAL_TOKENS, WORK) <= 13.0
    in_bytes = choose(Budget(kv_bytes=5000), measured, CONFIG)
    assert measured.cache.bytes(in_bytes, VISUAL_TOKENS, LAYERS) <= 5000
    both = choose(Budget(keep=0.3, kv_bytes=5500), measured, CONFIG)
    assert measured.cache.bytes(both, VISUAL_TOKENS, LAYERS) <= 5500 and both.ratios[-1] == 0.3


def test_a_keep_ratio_alone_spends_what_the_published_schedule_would() -> None:
    published = paper_schedule(MEASURED.curves, 0.2).compute(VISUAL_TOKENS, LAYERS, CONFIG)
    assert limit_of(Budget(keep=0.2), MEASURED, CONFIG).most == pytest.approx(LAYERS * published)
    found = choose(Budget(keep=0.2), MEASURED, CONFIG)
    assert found.ratios[-1] == 0.2 and found.compute(VISUAL_TOKENS, LAYERS, CONFIG) <= published + 1e-9


def test_time_needs_a_clock() -> None:
    with pytest.raises(QuotaError, match="no machine was timed"):
        choose(Budget(milliseconds=13.0), MEASURED, CONFIG)


def test_what_was_measured_whole_is_believed() -> None:
    """The schedule is the one that measuring whole would find, though single cuts say another."""
    budget = Budget(compute=0.5)
    seen: dict[Schedule, float] = {}

    def whole(schedule: Schedule) -> float:
        # The last of those that single cuts rank is the best.
        seen[schedule] = 1 / (1 + charge(MEASURED.errors, schedule, VISUAL_TOKENS))
        return seen[schedule]

    found = choose(budget, MEASURED, CONFIG, whole)
    tried = [
        Tried(layers=one.layers, counts=tuple(one.counts(VISUAL_TOKENS)), error=error) for one, error in seen.items()
    ]
    assert choose(budget, MEASURED.model_copy(update={"tried": tuple(tried)}), CONFIG) == found
    assert choose(budget, MEASURED, CONFIG) != found


def test_what_is_expected_of_schedules() -> None:
    first, second, third = (Schedule((1,), (0.5,)), Schedule((-1,), (0.25,)), Schedule((0, 2), (0.5, 0.25)))
    added = [charge(MEASURED.errors, one, VISUAL_TOKENS) for one in (first, second, third)]
    plain = Expected(MEASURED)
    assert [plain(one) for one in (first, second, third)] == pytest.approx(added)
    tried = (Tried(layers=(1,), counts=(8,), error=2 * added[0]), Tried(layers=(-1,), counts=(4,), error=added[1] / 8))
    expected = Expected(MEASURED.model_copy(update={"tried": tried}))
    assert (expected(first), expected(second)) == pytest.approx((2 * added[0], added[1] / 8))
    ratios = [(2 * added[0] + SMALLEST) / (added[0] + SMALLEST), (added[1] / 8 + SMALLEST) / (added[1] + SMALLEST)]
    assert expected(third) == pytest.approx(math.sqrt(ratios[0] * ratios[1]) * added[2])
    assert [expected.measured(one) for one in (first, second, third)] == [True, True, False]
    # A cut that drops nothing is none.
    assert expected(Schedule((-1, 1), (1.0, 0.5))) == expected(first)
    assert expected(Schedule((-1,), (1.0,))) == 0 and expected.measured(Schedule((-1,), (1.0,)))


@pytest.mark.slow
def test_a_large_table_is_solved_in_seconds() -> None:
    measured = measurements(32, 576, errors=table(list(range(-1, 31)), 576))
    # Of a processor: others may be using this machine.
    began = time.process_time()
    found = choose(Budget(keep=0.3, compute=0.5), measured, CONFIG)
    assert time.process_time() - began < 20
    assert found.compute(576, 32, CONFIG) <= 0.5 and found.ratios[-1] == 0.3
