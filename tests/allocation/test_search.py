"""The schedule that measures best."""

from __future__ import annotations

from support.tiny_llava import LAYERS, make_model

from quota.allocation.search import TRIED, best_measured
from quota.pruning.schedule import Schedule

CONFIG = make_model().config.get_text_config()


def test_it_is_the_best_of_those_that_are_measured_whole() -> None:
    errors = {layer: {12: 0.05, 8: 0.1 + layer / 100, 5: 0.2} for layer in range(-1, 4)}
    asked: list[Schedule] = []

    def error(one: Schedule) -> float:
        return len(one.layers) + one.layers[0] / 10

    def whole(schedule: Schedule) -> float:
        asked.append(schedule)
        return error(schedule)

    found = best_measured(errors, whole, 16, LAYERS, 0.3, 0.6, CONFIG)
    assert 1 < len(asked) <= TRIED and len(set(asked)) == len(asked)
    best = min(asked, key=error)
    assert found.layers == best.layers
    assert found.counts(16) == best.counts(16)


def test_it_ends_at_the_final_ratio() -> None:
    errors = {layer: {8: 0.1, 5: 0.2} for layer in (-1, 2)}
    found = best_measured(errors, lambda one: len(one.layers), 16, LAYERS, 0.3, 0.8, CONFIG)
    assert found.ratios[-1] == 0.3
    everything = best_measured(errors, lambda one: len(one.layers), 16, LAYERS, 1.0, 1.0, CONFIG)
    assert everything.ratios == (1.0,)
