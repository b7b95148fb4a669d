"""Keys and values in 4 bits: quantised as they come, and unpacked again.

    x ~ zero + scale * q,   q in 0 .. 15       one float16 scale and zero per token and head

The definition is `quota.ops.reference.attention.quantize_kv`; the low half of byte j holds channel 2j, the high half
channel 2j + 1. A program takes a tile of rows [tokens of any head and sample, D]. A transform of the keys, with the
rotation in it, is a matrix product of torch's.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from quota.ops.head_transform import Folded, HeadTransform
from quota.ops.interface import PackedTensor
from quota.ops.triton.alarm import Alarm
from quota.ops.triton.launch import launch, power_of_two, tiles
from quota.ops.triton.tiles import DOT, high_nibbles, is_finite, low_nibbles, rotate, rotation, round_half_even

_ROWS = 16

_alarm = Alarm("keys or values hold NaN, infinity or numbers beyond 65504; check the model in float32")


def quantize(x: Tensor, hadamard: int, transform: HeadTransform | None = None) -> PackedTensor:
    """[B, G, T, D] -> packed; QuotaError for NaN, infinity and what float16 cannot hold."""
    if transform is not None:
        folded = folded_with(transform, hadamard)
        with torch.autocast(x.device.type, enabled=False):
            mapped = quantize(x.float() @ folded.into + folded.offset.unsqueeze(1), 0)
        return replace(mapped, hadamard=hadamard, transform=transform)
    x = x.contiguous()
    *outer, width = x.shape
    packed = torch.empty(*outer, width // 2, dtype=torch.uint8, device=x.device)
    scale = torch.empty(*outer, 1, dtype=torch.float16, device=x.device)
    zero = torch.empty_like(scale)
    rows = scale.numel()
    with _alarm.listen() as word:
        launch(
            _quantize,
            (tiles(rows, _ROWS),),
            *(x, rotation(hadamard, x.device), packed, scale, zero, word, rows),
            WIDTH=width,
            HADAMARD=hadamard,
            ROWS=_ROWS,
            SIDE=power_of_two(width, DOT),
        )
    return PackedTensor(packed, scale, zero, 4, width, hadamard)


def dequantize(stored: PackedTensor, dtype: torch.dtype) -> Tensor:
    """Rotated and transformed back: [B, G, T, D] in `dtype`."""
    if stored.transform is not None:
        back = folded_with(stored.transform, stored.hadamard).back
        mapped = dequantize(replace(stored, hadamard=0, transform=None), torch.float32)
        with torch.autocast(mapped.device.type, enabled=False):
            return (mapped @ back).to(dtype)
    packed, scale, zero = stored.packed, stored.scale, stored.zero
    batch, heads, tokens, _ = packed.shape
    result = torch.empty(batch, heads, tokens, stored.width, dtype=dtype, device=packed.device)
    launch(
        _dequantize,
        (tiles(tokens, _ROWS), batch * heads),
        *(packed, scale, zero, rotation(stored.hadamard, packed.device), result, heads, tokens),
        *(*packed.stride()[:3], *scale.stride()[:3], *zero.stride()[:3]),
        WIDTH=stored.width,
        HADAMARD=stored.hadamard,
        ROWS=_ROWS,
        SIDE=power_of_two(stored.width, DOT),
    )
    return result


def folded_with(transform: HeadTransform, hadamard: int) -> Folded:
    """The transform and the rotation behind it; made at the first use."""
    place = "triton", hadamard
    if place not in transform.prepared:
        transform.prepared[place] = transform.folded(hadamard)
    return transform.prepared[place]


@triton.jit(do_not_specialize=["rows"])
def _quantize(
    x_ptr, matrix_ptr, packed_ptr, scale_ptr, zero_ptr, alarm_ptr, rows,
    WIDTH: tl.constexpr, HADAMARD: tl.constexpr, ROWS: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, SIDE)
    inside = (row < rows)[:, None] & (channel < WIDTH)[None, :]
    x = tl.load(x_ptr + row[:, None] * WIDTH + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    x = tl.reshape(rotate(tl.reshape(x, (ROWS * SIDE,)), matrix_ptr, HADAMARD, ROWS * SIDE), (ROWS, SIDE))

    low = tl.min(tl.where(inside, x, float("inf")), axis=1)
    high = tl.max(tl.where(inside, x, float("-inf")), axis=1)
    # The least normal number of float16.
    scale = tl.maximum(tl.div_rn(high - low, 15.0), 6.103515625e-05).to(tl.float16)
    zero = low.to(tl.float16)
    # Minima and maxima pass NaN over.
    bad = tl.max((~is_finite(x)).to(tl.int32), axis=1) == 1
    bad = (bad | ~is_finite(scale.to(tl.float32)) | ~is_finite(zero.to(tl.float32))) & (row < rows)
    tl.store(alarm_ptr, 1, mask=tl.max(bad.to(tl.int32), axis=0) == 1)

    # Rounded against the stored scale and zero, not against the exact ones.
    step = tl.broadcast_to(scale.to(tl.float32)[:, None], (ROWS, SIDE))
    q = tl.div_rn(x - zero.to(tl.float32)[:, None], step)
    q = round_half_even(tl.minimum(tl.maximum(q, 0.0), 15.0)).to(tl.uint8)
    even, odd = tl.split(tl.reshape(q, (ROWS, SIDE // 2, 2)))
    byte = tl.arange(0, SIDE // 2)
    inside = (row < rows)[:, None] & (byte < WIDTH // 2)[None, :]
    tl.store(packed_ptr + row[:, None] * (WIDTH // 2) + byte[None, :], even | (odd << 4), mask=inside)
    tl.store(scale_ptr + row, tl.where(bad, float("nan"), scale), mask=row < rows)
    tl.store(zero_ptr + row, zero, mask=row < rows)


@triton.jit(do_not_specialize=["tokens"])
def _dequantize(
    packed_ptr, scale_ptr, zero_ptr, matrix_ptr, x_ptr, heads, tokens,
    p_batch, p_head, p_token, s_batch, s_head, s_token, z_batch, z_head, z_token,
    WIDTH: tl.constexpr, HADAMARD: tl.constexpr, ROWS: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.program_id(1).to(tl.int64)
    batch, head = row // heads, row % heads
    byte = tl.arange(0, SIDE // 2)
    inside = (token < tokens)[:, None] & (byte < WIDTH // 2)[None, :]
    packed = packed_ptr + batch * p_batch + head * p_head
    stored = tl.load(packed + token[:, None] * p_token + byte[None, :], mask=inside, other=0)
    scale = tl.load(scale_ptr + batch * s_batch + head * s_head + token * s_token, mask=token < tokens, other=0)
    zero = tl.load(zero_ptr + batch * z_batch + head * z_head + token * z_token, mask=token < tokens, other=0)

    q = tl.interleave(low_nibbles(stored), high_nibbles(stored)).to(tl.float32)
    x = q * scale.to(tl.float32)[:, None] + zero.to(tl.float32)[:, None]
    channel = tl.arange(0, SIDE)
    # What lies beyond D is no zero yet, and a rotation would spread it.
    x = tl.where((channel < WIDTH)[None, :], x, 0.0)
    x = tl.reshape(rotate(tl.reshape(x, (ROWS * SIDE,)), matrix_ptr, HADAMARD, ROWS * SIDE), (ROWS, SIDE))
    inside = (token < tokens)[:, None] & (channel < WIDTH)[None, :]
    place = (row * tokens + token)[:, None] * WIDTH + channel[None, :]
    tl.store(x_ptr + place, x.to(x_ptr.dtype.element_ty), mask=inside)
