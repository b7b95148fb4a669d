"""Rotating and quantising activations, as `quota.ops.activations` defines it, for the product of `linear`.

A program takes a token: its largest number makes the scale s, and on the grid of s every group of channels has its step
g and offset b,

    t = x / s        v = clip(round(t), -127, 127)                                      8 bits
                     v = g clip(round((t - b) / g), 0, 15) + b                          4 bits

Rows wider than a tile are read, and rotated, a second time. Behind 4-bit weights (two channels a byte), even and odd
channels are stored apart. The same kernel measures how far it moves a token, in place of storing the values.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from quota.ops.activations import NOT_FINITE
from quota.ops.hadamard import block_hadamard
from quota.ops.interface import InputSpec
from quota.ops.triton.alarm import Alarm
from quota.ops.triton.launch import EXACT, launch, power_of_two
from quota.ops.triton.limits import LARGEST_ROTATION
from quota.ops.triton.tiles import is_finite, rotate, rotation, round_half_even

# Channels of a tile: `rotate` wants 16 rows of its matrix, and larger ones take long to compile.
_LEAST, _MOST = 1024, 4096

_alarm = Alarm(NOT_FINITE)


class Activations(NamedTuple):
    """What the product reads."""

    values: Tensor
    """int8 [planes, M, K / planes]; of two planes, the first holds the even channels."""
    scale: Tensor
    """float32 [M]."""


def quantize(x: Tensor, inputs: InputSpec, planes: int = 1) -> Activations:
    """x [M, K] to what the product reads; QuotaError for NaN or infinity, on a GPU perhaps a few calls later."""
    values = torch.empty(planes, len(x), x.shape[1] // planes, dtype=torch.int8, device=x.device)
    scale = torch.empty(len(x), dtype=torch.float32, device=x.device)
    with _alarm.listen() as word:
        _run(x, inputs, values, scale, word, PLANES=planes, MEASURE=False)
    return Activations(values, scale)


def arrange(values: Tensor, planes: int) -> Activations:
    """The same for values int8 [M, K] that are quantised already, with scales of 1."""
    apart = values.unflatten(1, (-1, planes)).permute(2, 0, 1).contiguous()
    return Activations(apart, torch.ones(len(values), dtype=torch.float32, device=values.device))


def activation_error(x: Tensor, inputs: InputSpec) -> Tensor:
    """||Q(x H) - x H||_2 of each row of x [M, K] -> [M] float32, NaN for a row with NaN or infinity."""
    if inputs.bits == 16:
        return torch.zeros(len(x), dtype=torch.float32, device=x.device)
    if inputs.hadamard > LARGEST_ROTATION:
        x, inputs = block_hadamard(x.float(), inputs.hadamard), replace(inputs, hadamard=0)
    error = torch.empty(len(x), dtype=torch.float32, device=x.device)
    _run(x, inputs, error, error, error, PLANES=1, MEASURE=True)
    return error


def _run(x: Tensor, inputs: InputSpec, *outputs: Tensor, **options: int) -> None:
    matrix = rotation(inputs.hadamard, x.device)
    launch(
        _quantize,
        (len(x),),
        *(x.contiguous(), matrix, *outputs),
        COLUMNS=inputs.columns,
        BITS=inputs.bits,
        GROUP=inputs.group,
        HADAMARD=inputs.hadamard,
        CHANNELS=max(inputs.group, min(_MOST, power_of_two(inputs.columns, _LEAST))),
        num_warps=8,
        **options,
        **EXACT,
    )


@triton.jit
def _quantize(
    x_ptr, matrix_ptr, result_ptr, scale_ptr, alarm_ptr,
    COLUMNS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, HADAMARD: tl.constexpr,
    CHANNELS: tl.constexpr, PLANES: tl.constexpr, MEASURE: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    x_ptr += token * COLUMNS
    x = _rotated(x_ptr, 0, matrix_ptr, COLUMNS, HADAMARD, CHANNELS)
    largest = tl.abs(x)
    for first in range(CHANNELS, COLUMNS, CHANNELS):
        x = _rotated(x_ptr, first, matrix_ptr, COLUMNS, HADAMARD, CHANNELS)
        largest = tl.maximum(largest, tl.abs(x), propagate_nan=tl.PropagateNan.ALL)
    # The maximum of a tile passes NaN over.
    bad = tl.max((~is_finite(largest)).to(tl.int32), axis=0) == 1
    scale = tl.div_rn(tl.max(largest, axis=0), 127.0 if BITS == 8 else 122.0)
    # Below the least normal number any scale will do: everything becomes zero.
    scale = tl.where(scale < 1.1754943508222875e-38, 1.0, scale)
    inverse = tl.div_rn(1.0, scale)

    moved = tl.zeros((CHANNELS,), tl.float32)
    for first in range(0, COLUMNS, CHANNELS):
        if COLUMNS > CHANNELS:
            x = _rotated(x_ptr, first, matrix_ptr, COLUMNS, HADAMARD, CHANNELS)
        target = x * inverse
        if BITS == 8:
            value = tl.minimum(tl.maximum(round_half_even(target), -127.0), 127.0)
        else:
            value = _stepped(target, GROUP, CHANNELS)
        if MEASURE:
            moved += (value - target) * (value - target)
        else:
            _store(result_ptr + token * (COLUMNS // PLANES), first, value.to(tl.int8), COLUMNS, CHANNELS, PLANES)
    if MEASURE:
        tl.store(result_ptr + token, tl.where(bad, float("nan"), tl.sqrt_rn(tl.sum(moved, axis=0)) * scale))
    else:
        tl.store(scale_ptr + token, tl.where(bad, float("nan"), scale))
        tl.store(alarm_ptr, 1, mask=bad)


@triton.jit
def _rotated(x_ptr, first, matrix_ptr, COLUMNS: tl.constexpr, HADAMARD: tl.constexpr, CHANNELS: tl.constexpr):
    channel = first + tl.arange(0, CHANNELS)
    x = tl.load(x_ptr + channel, mask=channel < COLUMNS, other=0.0).to(tl.float32)
    return rotate(x, matrix_ptr, HADAMARD, CHANNELS)


@triton.jit
def _stepped(target, GROUP: tl.constexpr, CHANNELS: tl.constexpr):
    """Values of 4 bits, whole numbers in float32."""
    target = tl.reshape(target, (CHANNELS // GROUP, GROUP))
    low, high = tl.min(target, axis=1), tl.max(target, axis=1)
    step = tl.maximum(round_half_even((high - low) * (1 / 15)), 1.0)
    offset = round_half_even((low + high) * 0.5 - step * 7.5)
    inverse = tl.div_rn(1.0, step)
    q = round_half_even((target - offset[:, None]) * inverse[:, None])
    q = tl.minimum(tl.maximum(q, 0.0), 15.0)
    return tl.reshape(q * step[:, None] + offset[:, None], (CHANNELS,))


@triton.jit
def _store(row_ptr, first, value, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, PLANES: tl.constexpr):
    place = first // PLANES + tl.arange(0, CHANNELS // PLANES)
    inside = place < COLUMNS // PLANES
    if PLANES == 2:
        even, odd = tl.split(tl.reshape(value, (CHANNELS // 2, 2)))
        tl.store(row_ptr + place, even, mask=inside)
        tl.store(row_ptr + tl.num_programs(0).to(tl.int64) * (COLUMNS // 2) + place, odd, mask=inside)
    else:
        tl.store(row_ptr + place, value, mask=inside)
