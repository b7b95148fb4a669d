"""The value is the deployed operator's; the gradient is that of quantisers that do not round."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quota import ops
from quota.ops.integer import (
    dequantize_activation,
    dequantize_weight,
    quantize_activation,
    round_weight,
    search_scale,
)
from quota.quantization.straight_through import deployed_linear
from quota.scheme import QuantizationScheme

M, N, K, G = 6, 5, 128, 64


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def operands(bits: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    weight = random(N, K, seed=1).unflatten(1, (-1, G))
    return random(M, K), weight, search_scale(weight, bits)


@pytest.mark.parametrize("bits", [4, 8], ids=lambda b: f"A{b}")
@pytest.mark.parametrize("weight_bits", [4, 8], ids=lambda b: f"W{b}")
def test_the_value_is_that_of_quantised_operands(weight_bits: int, bits: int) -> None:
    x, weight, scale = operands(weight_bits)
    y = deployed_linear(x, weight, scale, QuantizationScheme(weight_bits=weight_bits, activation_bits=bits))
    seen = dequantize_activation(*quantize_activation(x, bits, G))
    q = round_weight(weight, scale.unsqueeze(-1), weight_bits).flatten(1)
    torch.testing.assert_close(y, seen @ dequantize_weight(q, scale).T, rtol=1e-4, atol=1e-4)


def test_the_deployed_operator_runs() -> None:
    with ops.record() as usage:
        deployed_linear(*operands(), QuantizationScheme())
    assert usage.backends() == {"linear": [ops.backend().name]}


def test_where_nothing_is_rounded_gradients_are_those_of_the_product() -> None:
    x, weight, scale = operands()
    weight = round_weight(weight, scale.unsqueeze(-1), 4) * scale.unsqueeze(-1)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    scheme = QuantizationScheme(activation_bits=16)
    deployed_linear(x, weight, scale, scheme).square().sum().backward()
    a, b = x.detach().requires_grad_(), weight.detach().requires_grad_()
    (a @ b.flatten(1).T).square().sum().backward()
    assert x.grad is not None and a.grad is not None and weight.grad is not None and b.grad is not None
    torch.testing.assert_close(x.grad, a.grad)
    torch.testing.assert_close(weight.grad, b.grad)


def test_the_slope_of_a_scale_is_what_it_leaves_unsaid() -> None:
    """d(s round(v / s)) / ds = round(v / s) - v / s within the range."""
    x, weight, scale = operands()
    scale = scale.bfloat16().float().requires_grad_()
    deployed_linear(x, weight, scale, QuantizationScheme()).sum().backward()
    seen = dequantize_activation(*quantize_activation(x, 4, G)).sum(0).unflatten(0, (-1, G))
    ratio = (weight / scale.detach().unsqueeze(-1)).detach()
    clamped = ratio.round().clamp(-8, 7)
    slope = torch.where((ratio.round() >= -8) & (ratio.round() <= 7), clamped - ratio, clamped)
    assert scale.grad is not None
    torch.testing.assert_close(scale.grad, (slope * seen).sum(-1), rtol=1e-3, atol=1e-3)


def test_a_step_against_the_gradient_of_the_inputs_size_lowers_the_error() -> None:
    """Multiplying a channel of x and dividing its weights is free; the gradient knows which way."""
    x, weight, _ = operands()
    x[:, 3] *= 30
    size = torch.zeros(K, requires_grad=True)

    def error(size: Tensor) -> Tensor:
        turned = (weight.flatten(1) * size.exp()).unflatten(1, (-1, G))
        scale = turned.abs().amax(-1) / 7
        return (deployed_linear(x / size.exp(), turned, scale, QuantizationScheme()) - x @ weight.flatten(1).T).norm()

    before = error(size)
    before.backward()
    assert size.grad is not None
    assert error(-0.3 * size.grad / size.grad.abs().max()) < before
