"""Training lowers the error of the deployed layer on tokens that it has not seen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from quota.quantization.kronecker import Kronecker
from quota.quantization.linear import W4A4Linear
from quota.quantization.training import train
from quota.scheme import QuantizationScheme

K, N = 192, 48


def inputs(tokens: int, seed: int) -> Tensor:
    """Channels of unequal size that hang together."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(K, K, generator=generator) / K**0.5 + torch.diag(torch.randn(K, generator=generator).exp())
    return torch.randn(tokens, K, generator=torch.Generator().manual_seed(seed)) @ mix


def linear() -> nn.Linear:
    layer = nn.Linear(K, N, bias=False).requires_grad_(False)
    layer.weight.copy_(torch.randn(N, K, generator=torch.Generator().manual_seed(3)) / K**0.5)
    return layer


def error(transform: Kronecker | None, scheme: QuantizationScheme) -> float:
    x, layer = inputs(512, seed=8), linear()
    made = W4A4Linear.from_linear(layer, scheme, transform=transform)
    return float((made(x) - layer(x)).norm() / layer(x).norm())


@pytest.mark.parametrize("bits", [(4, 4), (4, 8), (8, 4), (4, 16)], ids=lambda b: f"W{b[0]}A{b[1]}")
def test_the_error_on_other_tokens_falls(bits: tuple[int, int]) -> None:
    fields = {"weight_bits": bits[0], "activation_bits": bits[1], "weight_rounding": "rtn"}
    rotated, trained = (QuantizationScheme(transforms=name, **fields) for name in ("hadamard", "trained"))
    found = train(inputs(1024, seed=4), [linear().weight], trained)
    assert error(found, trained) < 0.9 * error(None, rotated)


def test_steps_bring_more_than_the_closed_form_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    scheme = QuantizationScheme(transforms="trained", weight_rounding="rtn")
    found = train(inputs(1024, seed=4), [linear().weight], scheme)
    monkeypatch.setattr("quota.quantization.training.STEPS", 0)
    closed = train(inputs(1024, seed=4), [linear().weight], scheme)
    assert error(found, scheme) < 0.97 * error(closed, scheme)


def test_it_is_deterministic_and_exact_in_bfloat16() -> None:
    scheme = QuantizationScheme(transforms="trained")
    one, two = (train(inputs(256, seed=4), [linear().weight], scheme) for _ in range(2))
    for name, buffer in one.state_dict().items():
        assert torch.equal(buffer, two.state_dict()[name])
        assert torch.equal(buffer, buffer.bfloat16().float())
    assert 0 < float(one.clip) < 1


@pytest.mark.parametrize("zero", ["inputs", "weights"])
def test_zeros_are_no_trouble(zero: str) -> None:
    scheme = QuantizationScheme(transforms="trained")
    x, weight = inputs(64, seed=4) * (zero != "inputs"), linear().weight * (zero != "weights")
    found = train(x, [weight], scheme)
    assert all(torch.isfinite(buffer).all() for buffer in found.buffers())
