"""Errors of single cuts, and the schedule made from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny_llava import LAYERS, VISUAL_TOKENS, make_model, make_samples, processor

from quota.allocation.drops import Drops, candidates, divergence, spoken, typical
from quota.attention.hook import attach_cache
from quota.pruning.pruner import is_pruned
from quota.pruning.schedule import Schedule


def deployed() -> Any:
    """A tiny model in full precision, with quota's KV cache."""
    model = make_model()
    attach_cache(model, None)
    return model


@pytest.mark.parametrize(
    ("depth", "expected"),
    [(10, [-1, 0, 1, 2, 3, 4]), (32, [-1, 2, 5, 9, 12, 15]), (28, [-1, 2, 5, 7, 10, 13])],
)
def test_candidates_reach_from_the_projector_to_the_middle(depth: int, expected: list[int]) -> None:
    assert candidates(depth) == expected


def test_divergence_of_a_written_example() -> None:
    # An answer of one word and one of two.
    said = torch.tensor([[True, False], [True, True]])
    full = torch.tensor([[0.5, 0.5], [0.5, 0.5], [1.0, 1e-30]]).log() + 3
    pruned = torch.tensor([[0.25, 0.75], [0.5, 0.5], [0.5, 0.5]]).log() - 1
    # 1/2 ln 2 + 1/2 ln (2/3); 0 + ln 2
    expected = torch.tensor([0.143841, 0.693147], dtype=torch.float64)
    torch.testing.assert_close(divergence(full, pruned, said), expected, atol=1e-6, rtol=0)
    assert divergence(full, full, said).tolist() == [0, 0]


def test_what_is_typical_is_the_geometric_mean_of_the_samples() -> None:
    assert typical(torch.tensor([0.5, 10.0])) == pytest.approx((0.6 * 10.1) ** 0.5 - 0.1, rel=1e-4)
    assert typical(torch.zeros(3)) == 0


def test_an_answer_ends_with_its_first_end_mark() -> None:
    answers = torch.tensor([[5, 2, 2, 2], [5, 6, 7, 8], [3, 5, 2, 0]])
    assert spoken(answers, [2, 3]).int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert bool(spoken(answers, []).all())


def test_later_words_of_an_answer_count() -> None:
    """A table over whole answers is another one than over first words, and above it."""
    model = deployed()
    tables = []
    for words in (1, 8):
        drops = Drops(model, processor(), make_samples(3), None, VISUAL_TOKENS, words)
        tables.append(drops.table(LAYERS, "information", (0.5, 0.1)))
    first, whole = tables
    assert all(whole[layer][count] > first[layer][count] > 0 for layer in first for count in first[layer])


def test_keeping_all_is_no_error_and_the_model_is_left_alone() -> None:
    model = deployed()
    drops = Drops(model, processor(), make_samples(3), None, VISUAL_TOKENS)
    errors = drops.table(LAYERS, "information", (1.0, 0.5, 0.1))
    assert list(errors) == candidates(LAYERS)
    for table in errors.values():
        assert list(table) == [16, 8, 2]
        assert table[16] == 0 < table[2]
    assert not is_pruned(model)


def test_a_schedule_is_worse_than_its_cuts_and_measured_in_any_order() -> None:
    drops = Drops(deployed(), processor(), make_samples(3), None, VISUAL_TOKENS)

    def error(*cuts: tuple[int, int]) -> float:
        return drops.error(Schedule.of_counts(cuts, VISUAL_TOKENS), "information")

    both = error((2, 8), (3, 2))
    assert error() == 0
    assert 0 < error((-1, 8)) != both
    assert error((2, 8), (3, 2)) == both > error((2, 8)) > 0
