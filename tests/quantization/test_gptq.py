"""GPTQ: blocked against naive, and better than rounding to nearest where inputs are correlated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.weights import dequantize_weight, join_scales, quantize_weight
from quota.quantization.gptq import _inverse_factor, gptq, gptq_naive


def correlated_inputs(tokens: int, channels: int, seed: int) -> Tensor:
    """Activations [tokens, channels] of low rank plus noise, with channels of uneven size."""
    mixing = torch.randn(channels // 4, channels, generator=torch.Generator().manual_seed(0))
    size = torch.linspace(0.1, 2.0, channels)
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(tokens, channels // 4, generator=generator)
    return (latent @ mixing / 4 + 0.3 * torch.randn(tokens, channels, generator=generator)) * size


def random_weight(outputs: int, channels: int) -> Tensor:
    return torch.randn(outputs, channels, generator=torch.Generator().manual_seed(7))


def output_error(x: Tensor, weight: Tensor, quantized: tuple[Tensor, Tensor, Tensor]) -> float:
    """Relative error of the layer's output."""
    y = x @ weight.T
    return float((x @ dequantize_weight(*quantized).T - y).norm() / y.norm())


@pytest.mark.parametrize(("channels", "group"), [(128, 64), (96, 32), (40, 8), (3, 1)])
@pytest.mark.parametrize("bits", [4, 8], ids=["4bit", "8bit"])
def test_blocked_equals_naive(channels: int, group: int, bits: int) -> None:
    x = correlated_inputs(400, max(channels, 4), 1)[:, :channels]
    weight = random_weight(12, channels)
    group = group if bits == 4 else channels
    q, step, scale = gptq(weight, x.T @ x, bits, group)
    for found, naive in zip((q, step, scale), gptq_naive(weight, x.T @ x, bits, group), strict=True):
        assert torch.equal(found, naive)
    assert (q.dtype, step.dtype) == (torch.int8, torch.uint8)
    assert (step.shape, scale.shape) == ((12, channels // group), (12,))
    assert torch.equal(step * scale.unsqueeze(-1), join_scales(step, scale).float())


def test_unseen_correlated_inputs_see_less_than_half_the_error_of_rounding_to_nearest() -> None:
    weight = random_weight(64, 128)
    seen, unseen = correlated_inputs(2000, 128, 1), correlated_inputs(1000, 128, 2)
    hessian = seen.T @ seen
    nearest = quantize_weight(weight, 4, 64, importance=hessian.diagonal())
    assert output_error(unseen, weight, gptq(weight, hessian, 4, 64)) < 0.5 * output_error(unseen, weight, nearest)


def test_it_starts_with_the_strongest_inputs_wherever_they_stand() -> None:
    weight = random_weight(64, 128)
    x = correlated_inputs(2000, 128, 1)
    mirrored = torch.arange(128).unflatten(0, (2, 64)).flip(0).flatten()
    q, step, scale = gptq(weight, x.T @ x, 4, 64)
    mirrored_q, mirrored_step, mirrored_scale = gptq(weight[:, mirrored], (x.T @ x)[mirrored][:, mirrored], 4, 64)
    assert torch.equal(mirrored_q, q[:, mirrored])
    assert torch.equal(mirrored_step, step.flip(1))
    assert torch.equal(mirrored_scale, scale)


def test_the_scale_of_the_hessian_does_not_matter() -> None:
    x = correlated_inputs(300, 64, 3)
    weight = random_weight(8, 64)
    whole, mean = gptq(weight, x.T @ x, 4, 32), gptq(weight, x.T @ x / 256, 4, 32)
    assert all(map(torch.equal, whole, mean))


@pytest.mark.parametrize(
    "hessian",
    [torch.eye(64), torch.zeros(64, 64)],
    ids=["uncorrelated", "inputs all zero"],
)
def test_without_correlation_it_is_rounding_to_nearest(hessian: Tensor) -> None:
    weight = random_weight(8, 64)
    assert all(map(torch.equal, gptq(weight, hessian, 4, 32), quantize_weight(weight, 4, 32)))


@pytest.mark.parametrize("tokens", [1, 10], ids=["one token", "fewer tokens than channels"])
def test_a_hessian_without_full_rank_is_damped(tokens: int) -> None:
    x = correlated_inputs(tokens, 64, 4)
    x[:, 20] = 0
    weight = random_weight(8, 64)
    rounded = gptq(weight, x.T @ x, 4, 32)
    assert bool(torch.isfinite(rounded[2]).all())
    nearest = quantize_weight(weight, 4, 32)
    assert output_error(x, weight, rounded) < output_error(x, weight, nearest)


def test_a_hessian_that_is_not_finite_is_refused() -> None:
    hessian = torch.eye(8)
    hessian[2, 2] = float("inf")
    with pytest.raises(QuotaError, match="NaN or infinity"):
        gptq(random_weight(2, 8), hessian, 4, 8)


def test_the_factor_is_that_of_the_inverse() -> None:
    x = correlated_inputs(300, 48, 8)
    damped = (x.T @ x).double()
    damped.diagonal().add_(0.01 * damped.diagonal().mean())
    expected = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    torch.testing.assert_close(_inverse_factor(x.T @ x, 0.01), expected, rtol=1e-6, atol=1e-9)
