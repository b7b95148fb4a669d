"""The scorers of other papers, each on an example worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quota.pruning.scorers import Signals, cdpruner, dart, divprune, fastv, qapruner, random, uniform, visionzip
from quota.pruning.scorers.cdpruner import greedy_determinant
from quota.pruning.scorers.divprune import farthest_first


def row(hidden: list[list[float]] | Tensor, **signals: Tensor | None) -> Signals:
    tokens = torch.as_tensor(hidden, dtype=torch.float32)[None]
    return Signals(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), **signals)


def best_first(scores: Tensor) -> list[int]:
    return scores[0].argsort(descending=True, stable=True).tolist()


def at_angle(*degrees: float) -> list[list[float]]:
    return [[math.cos(math.radians(one)), math.sin(math.radians(one))] for one in degrees]


def test_random_is_drawn_from_the_count_alone() -> None:
    first, second = (random.score(row(torch.full((9, 2), value)), {}) for value in (1.0, 2.0))
    assert torch.equal(first, second)
    assert not torch.equal(first[0, :8], random.score(row(torch.ones(8, 2)), {})[0])


def test_uniform_keeps_the_middle_of_equal_parts() -> None:
    # 10 tokens, 4 of them: floor(1.25), floor(3.75), floor(6.25), floor(8.75).
    kept = uniform.score(row(torch.ones(10, 2), budget=torch.tensor([4])), {})
    assert kept[0].nonzero().flatten().tolist() == [1, 3, 6, 8]


@given(st.integers(1, 60).flatmap(lambda tokens: st.tuples(st.just(tokens), st.integers(0, tokens))))
def test_uniform_keeps_as_many_as_it_should(case: tuple[int, int]) -> None:
    tokens, budget = case
    kept = uniform.score(row(torch.ones(tokens, 2), budget=torch.tensor([budget])), {})[0].nonzero().flatten()
    assert kept.tolist() == [(2 * k + 1) * tokens // (2 * budget) for k in range(budget)]


def test_fastv_is_the_attention_of_the_last_text_token() -> None:
    last = torch.tensor([[0.1, 0.4, 0.2]])
    assert torch.equal(fastv.score(row(torch.ones(3, 2), last=last, inter=1 - last), {}), last)


def test_divprune_takes_the_farthest_next() -> None:
    # 60 degrees has the farthest nearest neighbour (100, at 40). Then 0 is 60 away, 100 is 40, 10 follows.
    order = best_first(divprune.score(row(at_angle(0, 10, 60, 100)), {}))
    assert order == [2, 0, 3, 1]


@given(st.lists(st.integers(0, 99), min_size=1, max_size=12, unique=True))
def test_farthest_first_is_the_greedy_choice(points: list[int]) -> None:
    # Squares of distances on a line, all different but for symmetry, where the lower index is taken.
    line = torch.tensor(points, dtype=torch.float32)
    distance = (line[:, None] - line).abs()[None]
    count = len(points)
    nearest = [min((abs(a - b) for b in points if b != a), default=math.inf) for a in points]
    chosen = [max(range(count), key=lambda i: (nearest[i], -i))]
    while len(chosen) < count:
        left = [i for i in range(count) if i not in chosen]
        chosen.append(max(left, key=lambda i: (min(abs(points[i] - points[j]) for j in chosen), -i)))
    scores = farthest_first(distance, torch.ones(1, count, dtype=torch.bool), None)
    assert best_first(scores) == chosen


def test_visionzip_takes_the_towers_favourites_and_a_few_of_the_rest() -> None:
    tower = torch.tensor([[0.9, 0.1, 0.8, 0.1, 0.1, 0.7, 0.1, 0.1, 0.6, 0.5]])
    # Of 6, round(6 * 54 / 64) = 5 are dominant; the rest is 1 3 4 6 7, and the middle one of them is 4.
    scores = visionzip.score(row(torch.ones(10, 2), tower=tower, budget=torch.tensor([6])), {})[0]
    assert (scores == 2).nonzero().flatten().tolist() == [0, 2, 5, 8, 9]
    assert (scores == 1).nonzero().flatten().tolist() == [4]


def test_dart_keeps_what_pivots_do_not_repeat() -> None:
    # Eight pivots at 0 degrees, with large keys; the others turn away from them.
    hidden = at_angle(*[0] * 8, 30, 90, 60)
    keys = torch.ones(1, 11, 4)
    keys[:, :8] = -5
    scores = dart.score(row(hidden, keys=keys), {})[0]
    assert scores[:8].tolist() == [2] * 8
    expected = [-math.cos(math.radians(one)) for one in (30, 90, 60)]
    torch.testing.assert_close(scores[8:], torch.tensor(expected))


def test_cdpruner_weighs_difference_by_relevance() -> None:
    # Relevance is the cosine with the text at 0 degrees, rescaled: 1, .98, 0, .34. First 0 degrees. 10 degrees repeats
    # it (gain .97 * sin^2 10 = .03), 70 does not (.12 * sin^2 70 = .10), 90 has no relevance.
    text = torch.tensor([[[2.0, 0.0]]])
    tokens = row(at_angle(0, 10, 90, 70), text=text, text_valid=torch.ones(1, 1, dtype=torch.bool))
    assert best_first(cdpruner.score(tokens, {}))[:2] == [0, 3]


def test_greedy_determinant_is_the_greedy_choice_of_determinants() -> None:
    factor = torch.randn(1, 7, 9, generator=torch.Generator().manual_seed(0))
    kernel = factor @ factor.transpose(1, 2)
    chosen: list[int] = []
    while len(chosen) < 7:
        left = [i for i in range(7) if i not in chosen]
        chosen.append(max(left, key=lambda i: float(torch.det(kernel[0][[*chosen, i]][:, [*chosen, i]].double()))))
    assert best_first(greedy_determinant(kernel, torch.ones(1, 7, dtype=torch.bool), None)) == chosen


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        pytest.param(qapruner.WEIGHTS, [0.5 + 0.25, 0.25 * 0.5, 0.25 + 0.25 * 0.5], id="all"),
        pytest.param({"range": 1.0}, [0.0, 0.5, 1.0], id="range alone"),
    ],
)
def test_qapruner_adds_tower_error_and_range(weights: dict[str, float], expected: list[float]) -> None:
    # Channels reach over 2, 3 and 4; the percentiles are minimum and maximum.
    hidden = [[1.0, -1.0], [3.0, 0.0], [2.0, -2.0]]
    tower, risk = torch.tensor([[0.3, 0.1, 0.1]]), torch.tensor([[3.0, 1.0, 2.0]])
    scores = qapruner.score(row(hidden, tower=tower, risk=risk), weights, (0.0, 100.0))
    torch.testing.assert_close(scores[0], torch.tensor(expected))
