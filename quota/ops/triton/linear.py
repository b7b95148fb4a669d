"""The linear operator on a GPU: `activations` rotates and quantises, and the kernel here multiplies.

    S = W_g X_g^T                          int8 tensor cores, a tile [weight rows, tokens] of exact int32 sums a group
    y = sum_g  S * scale_w * scale_x  + bias                                       in float32, group by group

Weights are read packed and unpacked in registers, as the left operand, which tensor cores take from there. A byte holds
two channels: an even one in its low half, an odd one in its high half. So that nothing need be shuffled, even and odd
channels of the activations lie apart, and a group is two products, low with even and high with odd. With 8-bit weights
there is one. With 8-bit activations, S += (128 - zero) * sum of W_g.

Groups are added in order, whatever the tile, so a row's result does not depend on the other rows.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from quota.ops.interface import LinearWeight
from quota.ops.triton.activations import Activations, arrange, quantize
from quota.ops.triton.launch import launch, power_of_two, tiles
from quota.ops.triton.tiles import high_nibbles, low_nibbles, signed_nibble


def linear(x: Tensor, weight: LinearWeight) -> Tensor:
    """x [M, K] -> [M, N] in the same type; QuotaError for NaN or infinity, on a GPU perhaps a few calls later."""
    spec = weight.spec
    y = torch.empty(x.shape[0], spec.rows, dtype=x.dtype, device=x.device)
    quantized = quantize(x, spec)
    _multiply(
        quantized, weight.packed, weight.scale, weight.bias, y, spec.weight_bits, spec.activation_bits, sums=False
    )
    return y


def group_sums(q: Tensor, zero: Tensor, packed: Tensor, bits: int, group: int) -> Tensor:
    """S of q uint8 [M, K], zero int32 [M, K / group] and packed weights: int32 [M, N, K / group]."""
    activation_bits = 8 if bool((q > 15).any() or (zero > 15).any()) else 4
    x = arrange(q, zero, activation_bits, bits)
    groups = q.shape[1] // group
    scale = torch.ones(len(packed), groups, dtype=torch.bfloat16, device=q.device)
    result = torch.empty(len(q), len(packed), groups, dtype=torch.int32, device=q.device)
    _multiply(x, packed, scale, None, result, bits, activation_bits, sums=True)
    return result


def _multiply(
    x: Activations, packed: Tensor, scale: Tensor, bias: Tensor | None, y: Tensor, bits: int, x_bits: int, sums: bool
) -> None:
    tokens, columns = x.q.shape[1], x.q.shape[2] * x.q.shape[0]
    groups = max(x.scale.shape[1], scale.shape[1])
    tile = _tile(tokens, x_bits)
    grid = (tiles(len(packed), tile["ROWS"]), tiles(tokens, tile["TOKENS"]))
    launch(
        _product,
        grid,
        *(x.q, x.scale, x.zero, packed.view(torch.uint8), scale, y if bias is None else bias, y),
        *(tokens, len(packed), columns, packed.shape[1] * 4),
        GROUPS=groups,
        GROUP=columns // groups,
        X_GROUPS=x.scale.shape[1],
        W_GROUPS=scale.shape[1],
        BITS=bits,
        X_BITS=x_bits,
        BIAS=bias is not None,
        SUMS=sums,
        **tile,
    )


def _tile(tokens: int, x_bits: int) -> dict[str, Any]:
    """Sides of a program's tile. Few tokens: many small programs, for the memory's sake; many: large tiles."""
    if tokens <= 16:
        return {"TOKENS": 16, "ROWS": 32, "num_warps": 2, "num_stages": 4}
    if tokens <= 64:
        return {"TOKENS": power_of_two(tokens), "ROWS": 64, "num_warps": 4, "num_stages": 4}
    # The correction of 8-bit activations takes registers too.
    return {"TOKENS": 128 if x_bits == 4 else 64, "ROWS": 128, "num_warps": 8, "num_stages": 3}


@triton.jit(do_not_specialize=["tokens"])
def _product(
    x_ptr, x_scale_ptr, zero_ptr, w_ptr, w_scale_ptr, bias_ptr, y_ptr, tokens, rows, columns, w_stride,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, X_GROUPS: tl.constexpr, W_GROUPS: tl.constexpr,
    BITS: tl.constexpr, X_BITS: tl.constexpr, BIAS: tl.constexpr, SUMS: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    row_inside, token_inside = row < rows, token < tokens
    # Bytes of a weight row in a group; narrow groups are filled up with zeros.
    WIDTH: tl.constexpr = GROUP * BITS // 8
    DEPTH: tl.constexpr = WIDTH if WIDTH > 32 else 32  # pyright: ignore[reportAssignmentType]
    byte = tl.arange(0, DEPTH)
    w_ptrs = w_ptr + row.to(tl.int64)[:, None] * w_stride + byte[None, :]
    x_ptrs = x_ptr + token[None, :] * (columns * BITS // 8) + byte[:, None]
    w_mask = row_inside[:, None] & (byte < WIDTH)[None, :]
    x_mask = token_inside[None, :] & (byte < WIDTH)[:, None]

    result = tl.zeros((ROWS, TOKENS), tl.float32)
    for group in range(GROUPS):
        x = tl.load(x_ptrs + group * WIDTH, mask=x_mask, other=0)
        if BITS == 4:
            # 0x88 is a pair of zeros.
            w = tl.load(w_ptrs + group * WIDTH, mask=w_mask, other=0x88)
            odd = tl.load(x_ptrs + tokens.to(tl.int64) * (columns // 2) + group * WIDTH, mask=x_mask, other=0)
            low, high = signed_nibble(low_nibbles(w)), signed_nibble(high_nibbles(w))
            sums = tl.dot(low, x, out_dtype=tl.int32)
            sums = tl.dot(high, odd, sums, out_dtype=tl.int32)
        else:
            w = tl.load(w_ptrs + group * WIDTH, mask=w_mask, other=0x80)
            low = (w ^ 0x80).to(tl.int8, bitcast=True)
            high = tl.zeros_like(low)
            sums = tl.dot(low, x, out_dtype=tl.int32)
        if X_BITS == 8:
            zero = tl.load(zero_ptr + token * X_GROUPS + group * X_GROUPS // GROUPS, mask=token_inside, other=0)
            total = tl.sum(low.to(tl.int32) + high.to(tl.int32), axis=1)
            sums -= total[:, None] * zero[None, :]
        if SUMS:
            place = (token[None, :] * rows + row[:, None]) * GROUPS + group
            tl.store(y_ptr + place, sums, mask=row_inside[:, None] & token_inside[None, :])
        else:
            x_scale = tl.load(x_scale_ptr + token * X_GROUPS + group * X_GROUPS // GROUPS, mask=token_inside, other=0)
            w_scale = tl.load(w_scale_ptr + row * W_GROUPS + group * W_GROUPS // GROUPS, mask=row_inside, other=0)
            scaled = sums.to(tl.float32) * w_scale.to(tl.float32)[:, None]
            result = tl.fma(scaled, tl.broadcast_to(x_scale[None, :], (ROWS, TOKENS)), result)

    if not SUMS:
        if BIAS:
            result += tl.load(bias_ptr + row, mask=row_inside, other=0)[:, None]
        y_ptrs = y_ptr + token[:, None] * rows + row[None, :]
        mask = token_inside[:, None] & row_inside[None, :]
        tl.store(y_ptrs, tl.trans(result).to(y_ptr.dtype.element_ty), mask=mask)
