"""The activation quantiser of deployed layers in the basis of their inputs: what risk and outputs must agree with."""

from __future__ import annotations

from torch import Tensor

from quota.ops.activations import dequantize_activation, quantize_activation
from quota.ops.hadamard import block_hadamard
from quota.scheme import QuantizationScheme


def fake_quantize(x: Tensor, scheme: QuantizationScheme) -> Tensor:
    """What a deployed linear layer sees of `x` [..., K]: rotated, quantised, dequantised, rotated back.

    Same shape, dtype and basis as `x`, so `fake_quantize(x) - x` is the activation's quantisation error
    (docs/method.md, risk). With 16-bit activations it is `x` itself.
    """
    if scheme.activation_bits == 16:
        return x
    channels = x.shape[-1]
    block = scheme.hadamard_for(channels)
    rotated = block_hadamard(x.float(), block)
    seen = dequantize_activation(
        *quantize_activation(rotated, scheme.activation_bits, scheme.activation_group_for(channels))
    )
    return block_hadamard(seen, block).to(x.dtype)
