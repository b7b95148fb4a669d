"""Rotating and quantising activations, as `quota.ops.integer.quantize_activation` defines it, for the product.

A token's blocks and groups know nothing of one another, so x [M, K] is one flat row of channels here. What is stored:

    4 bits   q - zero, which fits int8
    8 bits   q - 128, and zero - 128, by which the product corrects its sums

Behind 4-bit weights (two channels a byte), even and odd channels are stored apart.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from quota.ops.interface import LinearSpec
from quota.ops.triton.alarm import Alarm
from quota.ops.triton.launch import launch, tiles
from quota.ops.triton.tiles import is_finite, rotate, rotation, round_half_even

# Channels a program; 16 blocks of the largest rotation at least.
_CHANNELS = 2048

_alarm = Alarm("activations hold NaN or infinity and cannot be quantised; run the model in float32 to find where")


class Activations(NamedTuple):
    """What the product reads."""

    q: Tensor
    """int8 [2, M, K / 2], even and odd channels, or [1, M, K]."""
    scale: Tensor
    """float32 [M, K / group]."""
    zero: Tensor
    """int32 [M, K / group], zero - 128; only read with 8 bits."""


def quantize(x: Tensor, spec: LinearSpec) -> Activations:
    """x [M, K] to what the product reads; QuotaError for NaN or infinity, on a GPU perhaps a few calls later."""
    x = x.contiguous()
    planes = 8 // spec.weight_bits
    groups = x.shape[0], x.shape[1] // spec.activation_group
    q = torch.empty(planes, x.shape[0], x.shape[1] // planes, dtype=torch.int8, device=x.device)
    scale = torch.empty(groups, dtype=torch.float32, device=x.device)
    zero = torch.empty(groups, dtype=torch.int32, device=x.device)
    grid = (tiles(x.numel(), _CHANNELS),)
    matrix = rotation(spec.hadamard, x.device)
    with _alarm.listen() as word:
        launch(
            _quantize,
            grid,
            *(x, matrix, q, scale, zero, word, x.numel()),
            BITS=spec.activation_bits,
            GROUP=spec.activation_group,
            HADAMARD=spec.hadamard,
            PLANES=planes,
            CHANNELS=_CHANNELS,
            num_warps=8,
        )
    return Activations(q, scale, zero)


def arrange(q: Tensor, zero: Tensor, bits: int, weight_bits: int) -> Activations:
    """The same for q uint8 [M, K] and zero int32 [M, groups] that are quantised already, with scales of 1."""
    centred = q.int() - (zero.repeat_interleave(q.shape[1] // zero.shape[1], dim=1) if bits == 4 else 128)
    planes = centred.to(torch.int8).unflatten(1, (-1, 8 // weight_bits)).permute(2, 0, 1).contiguous()
    return Activations(planes, torch.ones_like(zero, dtype=torch.float32), zero - 128)


@triton.jit(do_not_specialize=["total"])
def _quantize(
    x_ptr, matrix_ptr, q_ptr, scale_ptr, zero_ptr, alarm_ptr, total,
    BITS: tl.constexpr, GROUP: tl.constexpr, HADAMARD: tl.constexpr, PLANES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * CHANNELS
    channel = first + tl.arange(0, CHANNELS)
    x = tl.load(x_ptr + channel, mask=channel < total, other=0.0).to(tl.float32)
    x = tl.reshape(rotate(x, matrix_ptr, HADAMARD, CHANNELS), (CHANNELS // GROUP, GROUP))

    low = tl.minimum(tl.min(x, axis=1), 0.0)
    high = tl.maximum(tl.max(x, axis=1), 0.0)
    scale = tl.div_rn(high - low, 2.0**BITS - 1)
    # Minima and maxima pass NaN over.
    bad = (tl.max((~is_finite(x)).to(tl.int32), axis=1) == 1) | ~is_finite(scale)
    tl.store(alarm_ptr, 1, mask=tl.max(bad.to(tl.int32), axis=0) == 1)
    # Below the least normal number any scale will do: everything becomes zero.
    scale = tl.where(scale < 1.1754943508222875e-38, 1.1920928955078125e-07, scale)

    # Rounded in the shifted range, as the definition does, so that ties fall on the same side.
    shift: tl.constexpr = 2.0 ** (BITS - 1)
    zero = tl.div_rn(-low, scale) - shift
    zero = round_half_even(tl.minimum(tl.maximum(zero, -shift), shift - 1))
    q = tl.div_rn(x, tl.broadcast_to(scale[:, None], (CHANNELS // GROUP, GROUP))) + zero[:, None]
    q = round_half_even(tl.minimum(tl.maximum(q, -shift), shift - 1))
    if BITS == 4:
        q -= zero[:, None]
    q = tl.reshape(q, (CHANNELS,)).to(tl.int8)

    group = first // GROUP + tl.arange(0, CHANNELS // GROUP)
    inside = group < total // GROUP
    tl.store(scale_ptr + group, tl.where(bad, float("nan"), scale), mask=inside)
    if BITS == 8:
        tl.store(zero_ptr + group, zero.to(tl.int32), mask=inside)
    if PLANES == 2:
        even, odd = tl.split(tl.reshape(q, (CHANNELS // 2, 2)))
        pair = first // 2 + tl.arange(0, CHANNELS // 2)
        tl.store(q_ptr + pair, even, mask=pair < total // 2)
        tl.store(q_ptr + total // 2 + pair, odd, mask=pair < total // 2)
    else:
        tl.store(q_ptr + channel, q, mask=channel < total)
