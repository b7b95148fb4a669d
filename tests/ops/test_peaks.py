"""The score of visual tokens: the plain loops, and the C++ kernel on every instruction set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quota.ops import reference_peaks
from quota.ops.cpu import peaks
from quota.ops.reference_peaks import attention_mass, attention_mass_naive, cosines, novelty, novelty_naive
from quota.selection import places
from tests.instruction_sets import every_isa, using


def operands(batch: int, tokens: int, width: int, ties: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, what they receive and which are valid; padding holds what may not be read."""
    draw = torch.Generator().manual_seed(tokens)
    hidden, weight = torch.randn(batch, tokens, width, generator=draw), torch.rand(batch, tokens, generator=draw)
    if ties:
        weight, hidden = (weight * 4).round(), hidden.sign()
    valid = torch.rand(batch, tokens, generator=draw) < 0.8
    hidden[~valid] = weight[~valid] = torch.nan
    return hidden, weight, valid


def cosines_of(hidden: Tensor) -> Tensor:
    return cosines(hidden @ hidden.transpose(1, 2), hidden.norm(dim=-1), slice(0, hidden.shape[1]))


@pytest.mark.parametrize("ties", [False, True], ids=["all different", "ties"])
def test_novelty_is_the_plain_loop(ties: bool) -> None:
    hidden, weight, valid = operands(3, 20, 8, ties)
    found = novelty(cosines_of(hidden), places(weight, valid), slice(0, 20))
    torch.testing.assert_close(found[valid], novelty_naive(hidden, weight, valid)[valid], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [2, 8])
def test_mass_is_the_plain_loop(width: int) -> None:
    hidden, weight, valid = operands(3, 20, width)
    found = attention_mass(cosines_of(hidden), weight, valid)
    torch.testing.assert_close(found[valid], attention_mass_naive(hidden, weight, valid)[valid], rtol=1e-4, atol=1e-5)


@every_isa
@pytest.mark.parametrize("ties", [False, True], ids=["all different", "ties"])
@pytest.mark.parametrize("tokens", [1, 5, 16, 144, 333])
def test_the_kernel_equals_the_reference(tokens: int, ties: bool, isa: str) -> None:
    hidden, weight, valid = operands(2, tokens, 16, ties)
    for rows in (slice(0, tokens), slice(tokens // 3, tokens // 2 + 1)):
        products, lengths = hidden[:, rows] @ hidden.transpose(1, 2), hidden.norm(dim=-1)
        with using(isa):
            found = peaks.peaks(products, lengths, weight, valid, rows.start)
        expected = reference_peaks.peaks(products, lengths, weight, valid, rows.start)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert not found[~valid[:, rows]].any()


@every_isa
def test_what_is_not_a_number_is_not_hidden(isa: str) -> None:
    hidden = torch.randn(1, 40, 8, generator=torch.Generator().manual_seed(0))
    hidden[0, 7] = torch.nan
    weight, valid = torch.ones(1, 40), torch.ones(1, 40, dtype=torch.bool)
    with using(isa):
        found = peaks.peaks(hidden @ hidden.transpose(1, 2), hidden.norm(dim=-1), weight, valid, 0)
    assert found.isnan().all()


@every_isa
def test_the_number_of_threads_changes_nothing(isa: str) -> None:
    hidden, weight, valid = operands(3, 200, 16)
    given = hidden @ hidden.transpose(1, 2), hidden.norm(dim=-1), weight, valid, 0
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with using(isa):
                found.append(peaks.peaks(*given))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
