from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from quota.calibration.moments import MOST, RIDGE, TOKENS, Moments
from quota.ops.activations import dequantize_activation, quantize_activation
from quota.ops.hadamard import block_hadamard
from quota.ranks import ALONE
from quota.scheme import QuantizationScheme

CPU = torch.device("cpu")
# 96 channels: the largest block and group that divide them are 32.
COLUMNS = 96


def moments(samples: list[tuple[Tensor, Tensor]], **scheme: Any) -> tuple[Tensor, Tensor | None]:
    sums = Moments(COLUMNS, QuantizationScheme(**scheme), CPU)
    for seen, meant in samples:
        sums.add(seen, meant if sums.corrects else None)
    return sums.of_all(ALONE)


def drawn(samples: int, tokens: int = 500) -> list[tuple[Tensor, Tensor]]:
    """(what the deployed stream has, what the exact one has): a tenth smaller, and noise."""
    chance = torch.Generator().manual_seed(0)
    mixing = torch.randn(COLUMNS, COLUMNS, generator=chance)
    found = []
    for _ in range(samples):
        meant = torch.randn(1, tokens, COLUMNS, generator=chance) @ mixing
        found.append((0.9 * meant + 0.1 * torch.randn(meant.shape, generator=chance), meant))
    return found


def test_gptq_rounds_by_the_second_moment_of_the_rotated_inputs() -> None:
    samples = drawn(3)
    hessian, correction = moments(samples, weight_rounding="gptq")
    x = block_hadamard(torch.cat([seen[0] for seen, _ in samples]), 32).double()
    torch.testing.assert_close(hessian.double(), x.T @ x, rtol=1e-4, atol=1e-2)
    assert correction is None


@pytest.mark.parametrize("rows", [COLUMNS, 40], ids=["one block", "blocks, the last one smaller"])
@pytest.mark.parametrize("number", [2, 20], ids=["few tokens", "many tokens"])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_correction_is_its_definition(bits: int, number: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quota.calibration.moments._ROWS", rows)
    samples = drawn(number)
    hessian, correction = moments(samples, activation_bits=bits)
    x = block_hadamard(torch.cat([meant[0] for _, meant in samples]), 32)
    v = block_hadamard(torch.cat([seen[0] for seen, _ in samples]), 32)
    if bits < 16:
        v = dequantize_activation(*quantize_activation(v, bits, 32))
    x, v = x.double(), v.double()
    torch.testing.assert_close(hessian.double(), v.T @ v, rtol=1e-4, atol=1e-2)
    ridge = RIDGE * (v.T @ v).diagonal().mean() * torch.eye(COLUMNS, dtype=torch.float64)
    expected = min(MOST, 1 - TOKENS * COLUMNS / len(v)) * ((x - v).T @ v) @ torch.linalg.inv(v.T @ v + ridge)
    assert correction is not None
    torch.testing.assert_close(correction.double(), expected, rtol=1e-3, atol=1e-5)


def test_corrected_weights_come_closer_on_tokens_that_nothing_was_fitted_to() -> None:
    *samples, (seen, meant) = drawn(25)
    _, correction = moments(samples, activation_bits=16, hadamard=0)
    weight = torch.randn(40, COLUMNS, generator=torch.Generator().manual_seed(1))
    assert correction is not None

    def error(changed: Tensor) -> float:
        return float((seen @ changed.T - meant @ weight.T).norm())

    assert error(weight + weight @ correction) < 0.7 * error(weight)


def test_few_tokens_correct_nothing() -> None:
    with pytest.warns(UserWarning, match="rounded without correction"):
        assert moments(drawn(1, TOKENS * COLUMNS))[1] is None
    assert moments(drawn(1, TOKENS * COLUMNS + 1))[1] is not None


def test_the_order_of_samples_changes_no_bit() -> None:
    samples = drawn(5)
    assert all(map(torch.equal, moments(samples), moments(samples[::-1])))


def test_inputs_of_zeros_correct_nothing_that_counts() -> None:
    nothing = torch.zeros(1, 10 * COLUMNS, COLUMNS)
    _, correction = moments([(nothing, nothing)])
    assert correction is not None and not correction.any()
