"""Which layers store which share of an image, and in which groups vLLM gives them blocks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from quota.pruning.schedule import Schedule
from quota.serving.vllm.stages import Stages, dropped, image_sizes


def test_a_layer_that_cuts_stores_what_it_keeps() -> None:
    stages = Stages((2, 4), (0.5, 0.25))
    assert [stages.stage(layer) for layer in range(6)] == [0, 0, 1, 1, 2, 2]
    assert [stages.keep(layer) for layer in range(6)] == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_a_cut_before_the_first_layer_leaves_no_layer_whole() -> None:
    stages = Stages((-1, 1), (0.5, 0.25))
    assert [stages.keep(layer) for layer in range(3)] == [0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    ("cuts", "depth", "parts"),
    [
        ((), 4, [0, 0, 0, 0]),
        ((2,), 6, [0, 0, 1, 1, 2, 2]),
        ((2, 3, 4), 6, [0, 1, 2, 3, 4, 5]),
        ((-1,), 3, [0, 0, 0]),
        ((4, 8), 12, [0] * 4 + [1] * 4 + [2] * 4),
    ],
)
def test_parts_are_of_one_size_and_inside_a_stage(cuts: tuple[int, ...], depth: int, parts: list[int]) -> None:
    stages = Stages(cuts, tuple(1 / (number + 2) for number in range(len(cuts))))
    assert stages.parts(depth) == parts
    assert len({parts.count(part) for part in parts}) == 1
    for part in set(parts):
        assert len({stages.stage(layer) for layer in range(depth) if parts[layer] == part}) == 1


def test_what_is_dropped_is_what_a_schedule_says() -> None:
    sizes = [144, 7, 1]
    schedule = Schedule((2, 4), (0.8, 0.3))
    stages = Stages(schedule.layers, schedule.ratios)
    for layer, number in ((2, 0), (4, 1)):
        kept = sum(schedule.counts(size)[number] for size in sizes)
        assert dropped(stages.keep(layer), sizes) == sum(sizes) - kept
    assert dropped(1.0, sizes) == 0


def test_places_inside_a_picture_that_hold_words_are_not_counted() -> None:
    features = [
        SimpleNamespace(mm_position=SimpleNamespace(get_num_embeds=lambda count=count: count)) for count in (9, 4)
    ]
    assert image_sizes(features) == [9, 4]
