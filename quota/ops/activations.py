"""The quantiser of activations: whole numbers inside one scale for every token (docs/method.md).

    s   = max_k |x_k| / 122          t_k = x_k / s
    g_j = max(1, round((max t - min t) / 15))                  over the channels of group j
    b_j = round((min t + max t) / 2 - 7.5 g_j)
    q_k = clip(round((t_k - b_j) / g_j), 0, 15)                what 4 bits hold
    v_k = g_j q_k + b_j              x_k ~ s v_k

Step g and offset b of a group are whole numbers, so v is one too, and a product with whole weights is one int32 sum
over all channels (quota/ops/reference/backend.py). 122 leaves room for the rounding of step and offset: |v| <= 127.
With 8 bits v is the code itself: s = max |x| / 127, v = round(x / s).

Everything is float32, each operation rounded, division by s and g as a product with the inverse: so kernels can
give the same numbers to the last one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quota.errors import QuotaError

LARGEST = {4: 122.0, 8: 127.0}
"""Bits -> where the largest number of a token comes to stand."""
LEVELS = 15

NOT_FINITE = "activations hold NaN or infinity and cannot be quantised; run the model in float32 to find where"
"""What every backend says of such inputs."""


def quantize_activation(x: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """Quantise `x` [..., K] for each token and group of `group` channels (`group` divides K).

    Returns v int8 [..., K] and s float32 [...]. Raises QuotaError if x holds NaN or infinity.
    """
    scaled, scale = scale_tokens(x, bits)
    if bits == 8:
        return scaled.round_().clamp_(-127, 127).to(torch.int8), scale
    values = steps(scaled.unflatten(-1, (-1, group))) if scaled.numel() else scaled
    return values.reshape(x.shape).to(torch.int8), scale


def scale_tokens(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """t float32 [..., K] and s float32 [...] of `x` [..., K]; errors as `quantize_activation`."""
    x = x.float()
    top = x.abs().amax(-1) if x.shape[-1] else x.new_zeros(x.shape[:-1])
    if not bool(torch.isfinite(top).all()):
        raise QuotaError(NOT_FINITE)
    scale = top / LARGEST[bits]
    # All zeros, or only subnormal numbers: any scale will do, they become zero.
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)
    return x * scale.reciprocal().unsqueeze(-1), scale


def steps(groups: Tensor) -> Tensor:
    """v of t [..., K / group, group] with 4 bits, whole numbers in float32."""
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = ((high - low) * (1 / LEVELS)).round_().clamp_(min=1)
    offset = ((low + high) * 0.5 - step * (LEVELS / 2)).round_()
    codes = (groups - offset).mul_(step.reciprocal()).round_().clamp_(0, LEVELS)
    return codes.mul_(step).add_(offset)


def dequantize_activation(values: Tensor, scale: Tensor) -> Tensor:
    """s v in float32 [..., K], for what `quantize_activation` returned."""
    return values.float().mul_(scale.unsqueeze(-1))
