"""The published score against a plain transcription, with and without each of its signals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from quota.errors import QuotaError
from quota.pruning.scorers import Signals
from quota.pruning.scorers.composite import WEIGHTS, score


def signals(batch: int = 2, tokens: int = 50, width: int = 16, dtype: torch.dtype = torch.float32) -> Signals:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(batch, tokens, width, generator=draw).to(dtype)
    inter, intra, risk = torch.rand(3, batch, tokens, generator=draw)
    valid = torch.ones(batch, tokens, dtype=torch.bool)
    return Signals(hidden=hidden, valid=valid, inter=inter, intra=intra, risk=risk)


def pad(given: Signals, left: int, right: int) -> Signals:
    """The same samples between places that hold NaN and are not valid."""

    def widen(tensor: torch.Tensor | None) -> torch.Tensor:
        assert tensor is not None
        shape = list(tensor.shape)
        sides = (tensor.new_full([shape[0], n, *shape[2:]], torch.nan) for n in (left, right))
        before, after = sides
        return torch.cat([before, tensor, after], dim=1)

    valid = torch.zeros(given.valid.shape[0], left + given.valid.shape[1] + right, dtype=torch.bool)
    valid[:, left : left + given.valid.shape[1]] = given.valid
    return Signals(widen(given.hidden), valid, widen(given.inter), widen(given.intra), widen(given.risk))


def normalized(row: np.ndarray) -> np.ndarray:
    low, high = np.percentile(row, [1, 99])
    return (np.clip(row, low, high) - low) / (high - low)


def test_is_the_published_sum() -> None:
    given = signals()
    assert given.inter is not None and given.intra is not None and given.risk is not None
    for index, row in enumerate(score(given, WEIGHTS)):
        expected = (
            0.45 * normalized(given.inter[index].numpy())
            + 0.25 * normalized(np.linalg.norm(given.hidden[index].numpy(), axis=-1))
            + 0.10 * normalized(given.intra[index].numpy())
            + 0.20 * normalized(given.risk[index].numpy())
        )
        np.testing.assert_allclose(row.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("name", WEIGHTS)
def test_more_of_each_metric_means_keep(name: str) -> None:
    given = signals(batch=1, tokens=9)
    ramp = torch.arange(9.0)[None]
    hidden = ramp[..., None] * torch.ones(4)
    only = replace(given, hidden=hidden, inter=ramp, intra=ramp, risk=ramp)
    row = score(only, {name: 1.0})[0]
    assert row.tolist() == sorted(row.tolist())
    assert row[0] == 0 and row[-1] == 1


def test_percentiles_are_used() -> None:
    given = signals()
    assert not torch.equal(score(given, WEIGHTS, (1.0, 99.0)), score(given, WEIGHTS, (25.0, 75.0)))


def test_batch_and_padding_change_no_bit() -> None:
    both = signals()
    together = score(pad(both, 3, 5), WEIGHTS)
    assert torch.equal(together[:, 3:-5], score(both, WEIGHTS))
    assert bool((together[:, :3] == 0).all() and (together[:, -5:] == 0).all())
    for index in range(2):
        assert both.inter is not None and both.intra is not None and both.risk is not None
        one = slice(index, index + 1)
        alone = Signals(both.hidden[one], both.valid[one], both.inter[one], both.intra[one], both.risk[one])
        assert torch.equal(score(alone, WEIGHTS)[0], together[index, 3:-5])


def test_bfloat16_tokens_are_measured_in_float32() -> None:
    given = signals(width=300, dtype=torch.bfloat16)
    assert torch.equal(score(given, WEIGHTS), score(replace(given, hidden=given.hidden.float()), WEIGHTS))


def test_what_has_no_weight_need_not_be_measured() -> None:
    given = signals()
    alone = Signals(hidden=given.hidden, valid=given.valid)
    assert torch.equal(score(alone, {"mag": 1.0}), score(given, {"mag": 1.0}))


@pytest.mark.parametrize("name", ["inter", "intra", "risk"])
def test_what_has_a_weight_must_be_measured(name: str) -> None:
    with pytest.raises(QuotaError, match=f"weighs '{name}'"):
        score(replace(signals(), **{name: None}), WEIGHTS)


def test_unknown_metric() -> None:
    with pytest.raises(QuotaError, match="unknown metric 'luck'"):
        score(signals(), {"luck": 1.0})


def test_no_metric() -> None:
    with pytest.raises(QuotaError, match="do not match"):
        score(signals(), {})
