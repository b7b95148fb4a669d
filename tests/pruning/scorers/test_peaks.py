"""The default score: a written example, and what it is for."""

from __future__ import annotations

import math

import torch

from quota.ops.choice import top_k
from quota.pruning.scorers import Signals, scorer
from quota.pruning.scorers.peaks import score


def at_angle(*degrees: float) -> torch.Tensor:
    return torch.tensor([[[math.cos(math.radians(one)), math.sin(math.radians(one))] for one in degrees]])


def test_a_written_example() -> None:
    # 0 and 10 degrees look alike, 90 stands alone.
    hidden, inter = at_angle(0, 10, 90), torch.tensor([[0.3, 0.2, 0.4]])
    given = Signals(hidden, torch.ones(1, 3, dtype=torch.bool), inter=inter)
    near = math.cos(math.radians(10)) ** 16
    side = math.cos(math.radians(80)) ** 16
    mass = [0.3 + 0.2 * near, 0.2 + 0.3 * near + 0.4 * side, 0.4 + 0.2 * side]
    new = [1.0, 1 - math.cos(math.radians(10)), 2.0]
    expected = [math.sqrt(one) * two for one, two in zip(mass, new, strict=True)]
    torch.testing.assert_close(score(given, {}), torch.tensor([expected]), atol=1e-6, rtol=1e-5)


def test_a_surface_comes_before_a_speck() -> None:
    # Ahead is one token of its own; then two that are as new, the second with three copies.
    hidden = torch.eye(3)[[0, 1, 2, 2, 2, 2]][None]
    given = Signals(hidden, torch.ones(1, 6, dtype=torch.bool), inter=torch.tensor([[3.0, 1.0, 1, 1, 1, 1]]))
    assert top_k(score(given, {}), [2], given.valid).tolist() == [[0, 2]]


def test_alone_every_token_has_its_own_attention() -> None:
    hidden, inter = torch.eye(4)[None], torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    valid = torch.ones(1, 4, dtype=torch.bool)
    given = Signals(hidden, valid, inter=inter)
    torch.testing.assert_close(score(given, {}), scorer("novelty").score(given, {}))
