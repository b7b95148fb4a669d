"""The clock: its equation, and what a budget of milliseconds leaves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_llava import LAYERS, VISUAL_TOKENS, batch, make_model

from quota.allocation.clock import Clock, fit, prefill_milliseconds
from quota.allocation.drops import schedule_recipe
from quota.attention.hook import attach_cache
from quota.errors import QuotaError
from quota.pruning.pruner import Pruner, is_pruned
from quota.pruning.schedule import Schedule

CLOCK = Clock(rest=16.0, layer=1.0, cut=0.5, depth=10, full=25.0)
milliseconds = st.floats(0.1, 100)


@given(milliseconds, milliseconds, milliseconds)
def test_the_fit_finds_what_prefills_are_made_of(rest: float, layer: float, cut: float) -> None:
    schedules = [(6.0, 1), (3.0, 1), (1.0, 1), (5.5, 6)]
    taken = [rest + layer * work + cut * cuts for work, cuts in schedules]
    assert fit(schedules, taken) == pytest.approx((rest, layer, cut))


def test_a_cut_takes_no_less_than_nothing() -> None:
    assert fit([(6.0, 1), (3.0, 1), (6.0, 6)], [16.0, 13.0, 15.0])[2] == 0


def test_prefills_that_do_not_grow_with_their_tokens_say_nothing() -> None:
    with pytest.raises(QuotaError, match="a machine that is idle"):
        fit([(6.0, 1), (3.0, 1), (5.5, 6)], [13.0, 16.0, 15.0])


def test_what_a_budget_leaves_for_the_decoder() -> None:
    assert CLOCK.compute(21.0) == 0.5
    assert CLOCK.compute(40.0) == 2.4
    assert CLOCK.charge == 0.5
    with pytest.raises(QuotaError, match=r"in 15\.0 ms is out of reach: here it takes 16\.0 ms"):
        CLOCK.compute(15.0)


def test_every_recipe_is_timed_and_the_model_left_as_it_was() -> None:
    model = make_model()
    attach_cache(model, None)
    schedules = [Schedule((layer,), (0.25,)) for layer in range(-1, LAYERS - 1)]
    recipes = [schedule_recipe(model, schedule, VISUAL_TOKENS, None, "information") for schedule in schedules]
    taken = prefill_milliseconds(model, batch(), [[], *([Pruner(model, recipe)] for recipe in recipes)], turns=3)
    assert len(taken) == 1 + len(recipes) and min(taken) > 0
    assert not is_pruned(model)
