"""The balancing transform: what it makes least, and that nothing beats it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quota.errors import QuotaError
from quota.quantization.balance import balance, balance_diagonal


def moments(width: int, seed: int, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    """Two second moments whose directions differ in energy by orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(2):
        scale = torch.exp(spread * torch.randn(width, generator=generator))
        x = torch.randn(4 * width, width, generator=generator) * scale
        x = x @ torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
        found.append(x.T @ x)
    return found[0], found[1]


def damage(first: Tensor, second: Tensor, matrix: Tensor) -> float:
    """tr(M^T A M) * tr(M^-1 B M^-T)."""
    inverse = torch.linalg.inv(matrix.double())
    return float((matrix.T.double() @ first.double() @ matrix.double()).trace()) * float(
        (inverse @ second.double() @ inverse.T).trace()
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([2, 8, 16]))
def test_both_sides_have_one_second_moment_behind_it(seed: int, width: int) -> None:
    first, second = moments(width, seed, spread=1.0)
    matrix = balance(first, second, damping=0.0).double()
    inverse = torch.linalg.inv(matrix)
    behind, other = matrix.T @ first.double() @ matrix, inverse @ second.double() @ inverse.T
    torch.testing.assert_close(behind, other, rtol=1e-2, atol=float(behind.diagonal().max()) * 1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_no_neighbour_does_less_damage(seed: int) -> None:
    first, second = moments(8, seed)
    matrix = balance(first, second, damping=0.0)
    least = damage(first, second, matrix)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(20):
        other = matrix @ (torch.eye(8) + 0.1 * torch.randn(8, 8, generator=generator))
        assert damage(first, second, other) > least * (1 - 1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_a_matrix_beats_a_diagonal_and_a_diagonal_beats_nothing(seed: int) -> None:
    first, second = moments(16, seed)
    diagonal = torch.diag(balance_diagonal(first.diagonal(), second.diagonal()))
    nothing = damage(first, second, torch.eye(16))
    assert damage(first, second, balance(first, second)) < damage(first, second, diagonal) < nothing


def test_a_channel_of_a_hundredfold_size_is_divided_by_ten() -> None:
    scale = balance_diagonal(torch.tensor([1e4, 1.0, 1.0, 1.0]), torch.ones(4), damping=0.0)
    torch.testing.assert_close(scale, torch.tensor([0.1, 1.0, 1.0, 1.0]))


def test_what_says_nothing_changes_nothing() -> None:
    zero = torch.zeros(2, 4, 4)
    torch.testing.assert_close(balance(zero, zero), torch.eye(4).repeat(2, 1, 1))
    torch.testing.assert_close(balance_diagonal(torch.zeros(4), torch.zeros(4)), torch.ones(4))


def test_a_moment_without_full_rank_is_damped() -> None:
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    matrix = balance(x.T @ x, torch.eye(16))
    assert bool(torch.isfinite(matrix).all()) and float(torch.linalg.cond(matrix)) < 100


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_moments_that_are_no_numbers_are_refused_in_one_line(broken: float) -> None:
    moment = torch.eye(4).repeat(2, 1, 1)
    moment[1, 0, 1] = moment[1, 1, 0] = broken
    with pytest.raises(QuotaError, match="too far apart to be balanced"):
        balance(moment, torch.eye(4).repeat(2, 1, 1))
