"""The score of attention and novelty: written examples."""

from __future__ import annotations

import math

import pytest
import torch

from quota import ops
from quota.pruning.scorers import Signals, scorer
from quota.pruning.scorers.novelty import score


def at_angle(*degrees: float) -> torch.Tensor:
    return torch.tensor([[[math.cos(math.radians(one)), math.sin(math.radians(one))] for one in degrees]])


def distance(degrees: float) -> float:
    return 1 - math.cos(math.radians(degrees))


def test_a_written_example() -> None:
    # By attention: 90 degrees, 0, 10, 80. 0 is new beside 90, 10 is near 0, 80 is near 90.
    hidden, inter = at_angle(0, 10, 90, 80), torch.tensor([[0.3, 0.2, 0.4, 0.1]])
    given = Signals(hidden, torch.ones(1, 4, dtype=torch.bool), inter=inter)
    expected = [distance(90), distance(10), 2.0, distance(10)]
    weighed = [math.sqrt(weight) * new for weight, new in zip(inter[0].tolist(), expected, strict=True)]
    torch.testing.assert_close(score(given, {}), torch.tensor([weighed]))


def test_of_two_equal_tokens_the_first_is_kept() -> None:
    hidden = at_angle(30, 30, 120)
    given = Signals(hidden, torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(score(given, {}), torch.tensor([[2.0, 0.0, 1.0]]), atol=1e-6, rtol=0)


def test_the_length_of_a_token_does_not_matter() -> None:
    draw = torch.Generator().manual_seed(0)
    hidden, inter = torch.randn(2, 9, 8, generator=draw), torch.rand(2, 9, generator=draw)
    valid = torch.ones(2, 9, dtype=torch.bool)
    longer = hidden * torch.rand(2, 9, 1, generator=draw).add(0.5)
    found, expected = (score(Signals(one, valid, inter=inter), {}) for one in (longer, hidden))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["novelty", "peaks"])
def test_many_tokens_are_scored_in_blocks_of_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    hidden, inter = torch.randn(3, 20, 8, generator=draw), torch.rand(3, 20, generator=draw)
    given = Signals(hidden, torch.rand(3, 20, generator=draw) < 0.8, inter=inter)
    with ops.use("reference"):
        whole = scorer(name).score(given, {})
        # Three rows at a time, and two in the end.
        monkeypatch.setattr("quota.ops.reference.tokens._ENTRIES", 3 * 60)
        torch.testing.assert_close(scorer(name).score(given, {}), whole)
