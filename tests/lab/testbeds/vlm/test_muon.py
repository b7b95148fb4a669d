"""Muon for many matrices is torch's, which takes one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quota_lab.testbeds.vlm.muon import Muon, orthogonalise


def matrices() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(*shape)) for shape in ((4, 24), (40, 4), (4, 24), (40, 4), (4, 24))]


def test_it_is_torchs() -> None:
    ours, theirs = matrices(), matrices()
    optimizers = Muon(ours, lr=0.1), torch.optim.Muon(theirs, lr=0.1, weight_decay=0.1, momentum=0.95)
    for step in range(3):
        torch.manual_seed(step)
        for one, other in zip(ours[:-1], theirs[:-1], strict=True):  # the last has no gradient
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    begun = matrices()
    for one, other, start in zip(ours, theirs, begun, strict=True):
        assert (one - other).norm() <= 0.02 * (other - start).norm()
    assert torch.equal(ours[-1], begun[-1])


@pytest.mark.parametrize("shape", [(3, 4, 24), (3, 24, 4), (2, 8, 8)], ids=["wide", "tall", "square"])
def test_singular_values_are_near_one(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)).float())
    assert values.min() > 0.3 and values.max() < 1.3
