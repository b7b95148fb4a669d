"""Linear layers and inputs drawn by a seed, and what a quantised one should compute."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quota.ops.activations import dequantize_activation, quantize_activation
from quota.ops.hadamard import block_hadamard
from quota.quantization.linear import W4A4Linear


def random_linear(in_features: int = 128, out_features: int = 24, bias: bool = True) -> nn.Linear:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(in_features, out_features, bias=bias).requires_grad_(False)
    for parameter in linear.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / in_features**0.5
    return linear


def random_input(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative(result: Tensor, expected: Tensor) -> float:
    return float((result - expected).norm() / expected.norm())


def expected_output(layer: W4A4Linear, x: Tensor) -> Tensor:
    """Rotate, quantise, dequantise, multiply in float64, add the bias."""
    scheme, channels = layer.scheme, layer.in_features
    rotated = block_hadamard(x.float(), scheme.hadamard_for(channels))
    if scheme.activation_bits < 16:
        group = scheme.activation_group_for(channels)
        rotated = dequantize_activation(*quantize_activation(rotated, scheme.activation_bits, group))
    y = rotated.double() @ layer.dequantized_weight().double().T
    return y if layer.bias is None else y + layer.bias.double()
