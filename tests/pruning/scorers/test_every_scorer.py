"""What the Pruner relies on, for each scorer in the registry."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from quota.errors import QuotaError
from quota.pruning.scorers import SCORERS, Signals, scorer

TOKENS = 50
BESIDE = {"valid", "budget", "text", "text_valid"}
# In a greedy order the first of few are the first of many.
DOES_WITHOUT = {"divprune": {"budget"}, "cdpruner": {"budget"}}
"""Fields that do not have one entry a visual token, or say where there is one."""


def everything(given: Signals) -> dict[str, Any]:
    return {field.name: getattr(given, field.name) for field in fields(given)}


def signals() -> Signals:
    """Two images of which everything was measured."""
    draw = torch.Generator().manual_seed(0)
    received = torch.rand(5, 2, TOKENS, generator=draw)
    names = ("inter", "intra", "risk", "last", "tower")
    return Signals(
        hidden=torch.randn(2, TOKENS, 64, generator=draw),
        valid=torch.ones(2, TOKENS, dtype=torch.bool),
        keys=torch.randn(2, TOKENS, 8, generator=draw),
        text=torch.randn(2, 7, 64, generator=draw),
        text_valid=torch.ones(2, 7, dtype=torch.bool),
        budget=torch.full((2,), 20),
        **dict(zip(names, received, strict=True)),
    )


def padded(given: Signals, right: int) -> Signals:
    """The same rows with places behind them that hold NaN and are not valid."""
    known = everything(given)
    for name in known.keys() - BESIDE:
        value = known[name]
        known[name] = torch.cat([value, value.new_full([2, right, *value.shape[2:]], torch.nan)], dim=1)
    known["valid"] = torch.cat([given.valid, torch.zeros(2, right, dtype=torch.bool)], dim=1)
    return Signals(**known)


def scores(name: str, given: Signals) -> Tensor:
    return scorer(name).score(given, scorer(name).WEIGHTS)


def order(name: str, given: Signals) -> list[list[int]]:
    """The places that would be kept, best first."""
    score = scores(name, given).masked_fill(~given.valid, -torch.inf)
    return score.argsort(dim=1, descending=True, stable=True)[:, :20].tolist()


@pytest.mark.parametrize("name", SCORERS)
class TestEveryScorer:
    def test_one_finite_number_a_token(self, name: str) -> None:
        result = scores(name, signals())
        assert result.shape == (2, TOKENS)
        assert bool(result.isfinite().all())

    def test_tells_tokens_apart(self, name: str) -> None:
        assert all(row.unique().numel() > 1 for row in scores(name, signals()))

    def test_never_nan_for_tokens_that_are_alike(self, name: str) -> None:
        known = everything(signals())
        alike = {key: torch.ones_like(known[key]) if known[key].is_floating_point() else known[key] for key in known}
        assert bool(scores(name, Signals(**alike)).isfinite().all())

    def test_repeated_runs_agree(self, name: str) -> None:
        assert torch.equal(scores(name, signals()), scores(name, signals()))

    def test_padding_changes_no_choice(self, name: str) -> None:
        assert order(name, padded(signals(), 5)) == order(name, signals())

    def test_a_row_is_scored_alone(self, name: str) -> None:
        both = signals()
        alone = Signals(**{key: value[1:] for key, value in everything(both).items()})
        assert order(name, alone) == order(name, both)[1:]

    def test_a_larger_budget_beside_it_changes_no_choice(self, name: str) -> None:
        """Of an image with fewer tokens than another is to keep."""
        both = signals()
        few = torch.arange(TOKENS) < 12
        valid = torch.stack([few, torch.ones(TOKENS, dtype=torch.bool)])
        known = everything(both) | {"valid": valid, "budget": torch.tensor([9, 40])}
        alone = Signals(**{key: value[:1] for key, value in known.items()})
        assert order(name, Signals(**known))[0][:9] == order(name, alone)[0][:9]

    def test_a_signal_that_it_names_must_be_measured(self, name: str) -> None:
        for signal in set(scorer(name).SIGNALS) - DOES_WITHOUT.get(name, set()):
            with pytest.raises(QuotaError):
                scores(name, Signals(**everything(signals()) | {signal: None}))


def test_unknown_scorer() -> None:
    with pytest.raises(QuotaError, match="unknown scorer 'luck'; known: composite"):
        scorer("luck")
