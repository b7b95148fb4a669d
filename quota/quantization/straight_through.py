"""The deployed linear operator with a gradient: its own value, the slope of quantisers that do not round.

    value      y = the operator of `quota.ops` on x and the packed codes of w
    gradient   of  y = x^ w^T     x^ = s_x (round(x / s_x + z) - z)     w^ = s_w round(w / s_w)      with round(v) ~ v

Scales are part of the gradient: s_x follows the ends of its group and s_w the largest weight of its own, and a value
beyond the range has a slope through them alone. Zero points, which are whole numbers, have none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quota import ops
from quota.ops.integer import pack_int32
from quota.ops.interface import LinearSpec, LinearWeight
from quota.scheme import QuantizationScheme


def deployed_linear(x: Tensor, weight: Tensor, scale: Tensor, scheme: QuantizationScheme) -> Tensor:
    """x [M, K] and weight [N, G, g] at `scale` [N, G], float32 -> [M, N]; all three get gradients.

    Both are quantised as they come, without a rotation; x is left as it is with 16-bit activations.
    """
    features, group = x.shape[1], scheme.activation_group_for(x.shape[1])
    bits, input_bits = scheme.weight_bits, scheme.activation_bits
    seen = x if input_bits == 16 else _soft_activation(x, input_bits, group)
    scale = _straight(scale, scale.bfloat16().float()).unsqueeze(-1)
    ratio = weight / scale
    q = _straight(ratio, ratio.round()).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    spec = LinearSpec(len(weight), features, bits, input_bits, group, hadamard=0)
    packed = pack_int32(q.detach().round().flatten(1).to(torch.int8), bits)
    operand = LinearWeight(spec, packed, scale.detach().squeeze(-1).bfloat16(), None)
    value = ops.for_linear(spec, x.device).linear(x.detach().contiguous(), operand)
    return _Product.apply(seen, (q * scale).flatten(1), value)


class _Product(torch.autograd.Function):
    """x [M, K] times w^T, w [N, K], of which the value is known."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, value: Tensor) -> Tensor:  # pyright: ignore
        ctx.save_for_backward(x, weight)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.T @ x, None


def _soft_activation(x: Tensor, bits: int, group: int) -> Tensor:
    groups = x.unflatten(-1, (-1, group))
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).clamp(min=torch.finfo(x.dtype).tiny)
    zero = (-low / scale).detach().round()
    shifted = groups / scale + zero
    return ((_straight(shifted, shifted.round()).clamp(0, 2**bits - 1) - zero) * scale).flatten(-2)


def _straight(soft: Tensor, hard: Tensor) -> Tensor:
    """The value of `hard` with the gradient of `soft`."""
    return soft + (hard - soft).detach()
