"""The linear operator on a GPU: `activations` rotates and quantises, and the kernel here multiplies.

    S = sum over all k of  w_nk v_mk           int8 tensor cores, a tile [weight rows, tokens] of exact int32 sums
    y = S * scale_n * s_m + bias_n             in float32, each operation rounded

Weights are read packed, unpacked in registers and multiplied by their group's step, as the left operand, which tensor
cores take from there. A byte holds two channels: an even one in its low half, an odd one in its high half. So that
nothing need be shuffled, even and odd channels of the activations lie apart, and a tile is two products, low with even
and high with odd. With 8-bit weights there is one.

Weights that read the same tensor (q, k and v) are one launch: the programs of a row of tiles first find theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from quota.ops.interface import LinearWeight
from quota.ops.reference.backend import shared_inputs
from quota.ops.triton.activations import Activations, arrange, quantize
from quota.ops.triton.launch import EXACT, launch, power_of_two, tiles
from quota.ops.triton.tiles import high_nibbles, low_nibbles, signed_nibble


def linear(x: Tensor, weights: Sequence[LinearWeight]) -> list[Tensor]:
    """x [M, K] -> [M, N] of each weight; QuotaError for NaN or infinity, on a GPU perhaps a few calls later."""
    results = [torch.empty(len(x), weight.spec.rows, dtype=x.dtype, device=x.device) for weight in weights]
    alike: dict[tuple[int, int, bool], list[int]] = {}
    for place, weight in enumerate(weights):
        alike.setdefault((weight.spec.bits, weight.spec.group, weight.bias is None), []).append(place)
    inputs = shared_inputs(weights)
    quantized = {bits: quantize(x, inputs, 8 // bits) for bits in {weight.spec.bits for weight in weights}}
    for (bits, _, _), places in alike.items():
        _multiply(quantized[bits], [weights[place] for place in places], [results[place] for place in places])
    return results


def sums(values: Tensor, weight: LinearWeight) -> Tensor:
    """S of values int8 [M, K]: int32 [M, N]."""
    result = torch.empty(len(values), weight.spec.rows, dtype=torch.int32, device=values.device)
    _multiply(arrange(values, 8 // weight.spec.bits), [weight], [result])
    return result


def _multiply(x: Activations, weights: Sequence[LinearWeight], results: Sequence[Tensor]) -> None:
    """Fill the results with sums if they are int32, else with what becomes of them. Weights are of one kind."""
    spec, tokens = weights[0].spec, len(x.scale)
    tile = _tile(tokens)
    grid = sum(tiles(weight.spec.rows, tile["ROWS"]) for weight in weights), tiles(tokens, tile["TOKENS"])
    biases = [result if weight.bias is None else weight.bias for weight, result in zip(weights, results, strict=True)]
    launch(
        _product,
        grid,
        *(x.values, x.scale),
        tuple(weight.packed.view(torch.uint8) for weight in weights),
        tuple(_steps(weight) for weight in weights),
        tuple(weight.scale for weight in weights),
        *(tuple(biases), tuple(results), tuple(weight.spec.rows for weight in weights), tokens),
        COLUMNS=spec.inputs.columns,
        BITS=spec.bits,
        GROUP=spec.group,
        BIAS=weights[0].bias is not None,
        **tile,
        **EXACT,
    )


def _steps(weight: LinearWeight) -> Tensor:
    """Steps [K / group, N], as a tile reads them: those of neighbouring rows side by side. Made at the first use."""
    found = weight.prepared.get("triton")
    if found is None:
        found = weight.prepared["triton"] = weight.step.T.contiguous()
    return found


def _tile(tokens: int) -> dict[str, Any]:
    """Sides of a program's tile, DEPTH in bytes of a weight's row.

    Few tokens: many small programs, and deep tiles, for the memory's sake; many: large tiles.
    """
    if tokens <= 16:
        return {"TOKENS": 16, "ROWS": 32, "DEPTH": 128, "num_warps": 2, "num_stages": 4}
    if tokens <= 64:
        return {"TOKENS": power_of_two(tokens), "ROWS": 64, "DEPTH": 64, "num_warps": 4, "num_stages": 4}
    return {"TOKENS": 128, "ROWS": 128, "DEPTH": 64, "num_warps": 8, "num_stages": 3}


@triton.jit(do_not_specialize=["tokens"])
def _product(
    x_ptr, x_scale_ptr, weights, steps, scales, biases, results, counts, tokens,
    COLUMNS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, BIAS: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    w_ptr, step_ptr, scale_ptr, bias_ptr, y_ptr = weights[0], steps[0], scales[0], biases[0], results[0]
    rows = tl.cast(counts[0], tl.int32)
    for sibling in tl.static_range(1, len(counts)):  # pyright: ignore[reportGeneralTypeIssues]
        ahead = tl.cdiv(rows, ROWS)
        if tile >= ahead:
            tile -= ahead
            w_ptr, step_ptr, scale_ptr = weights[sibling], steps[sibling], scales[sibling]
            bias_ptr, y_ptr, rows = biases[sibling], results[sibling], tl.cast(counts[sibling], tl.int32)

    row = tile * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    row_inside, token_inside = row < rows, token < tokens
    BYTES: tl.constexpr = COLUMNS * BITS // 8
    byte = tl.arange(0, DEPTH)
    w_ptrs = w_ptr + row.to(tl.int64)[:, None] * BYTES + byte[None, :]
    x_ptrs = x_ptr + token[None, :] * BYTES + byte[:, None]

    result = tl.zeros((ROWS, TOKENS), tl.int32)
    if BITS == 4:
        step = _steps_at(0, step_ptr, row, rows, COLUMNS, GROUP, DEPTH)
    for first in range(0, BYTES, DEPTH):
        inside = byte < BYTES - first
        x_mask = inside[:, None] & token_inside[None, :]
        w = tl.load(w_ptrs + first, mask=row_inside[:, None] & inside[None, :], other=0)
        x = tl.load(x_ptrs + first, mask=x_mask, other=0)
        if BITS == 4:
            odd = tl.load(x_ptrs + tokens.to(tl.int64) * BYTES + first, mask=x_mask, other=0)
            # Those of the next tile are asked for early: triton pipelines no loads of so few bytes.
            following = _steps_at(first + DEPTH, step_ptr, row, rows, COLUMNS, GROUP, DEPTH)
            spread = tl.broadcast_to(step[:, :, None], (ROWS, step.shape[1], DEPTH // step.shape[1]))
            spread = tl.reshape(spread, (ROWS, DEPTH))
            result = tl.dot(signed_nibble(low_nibbles(w)) * spread, x, result, out_dtype=tl.int32)
            result = tl.dot(signed_nibble(high_nibbles(w)) * spread, odd, result, out_dtype=tl.int32)
            step = following
        else:
            result = tl.dot((w ^ 0x80).to(tl.int8, bitcast=True), x, result, out_dtype=tl.int32)

    if y_ptr.dtype.element_ty != tl.int32:
        x_scale = tl.load(x_scale_ptr + token, mask=token_inside, other=0)
        result = result.to(tl.float32) * tl.load(scale_ptr + row, mask=row_inside, other=0)[:, None]
        result *= x_scale[None, :]
        if BIAS:
            result += tl.load(bias_ptr + row, mask=row_inside, other=0)[:, None]
    y_ptrs = y_ptr + token[:, None] * rows + row[None, :]
    mask = token_inside[:, None] & row_inside[None, :]
    tl.store(y_ptrs, tl.trans(result).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _steps_at(byte, step_ptr, row, rows, COLUMNS: tl.constexpr, GROUP: tl.constexpr, DEPTH: tl.constexpr):
    """Steps of the groups in a tile that begins at such a byte of its rows: int8 [ROWS, groups]."""
    WIDTH: tl.constexpr = GROUP // 2
    GROUPS: tl.constexpr = DEPTH // WIDTH if DEPTH > WIDTH else 1  # pyright: ignore[reportAssignmentType]
    group = byte // WIDTH + tl.arange(0, GROUPS)
    mask = (row < rows)[:, None] & (group < COLUMNS // GROUP)[None, :]
    return tl.load(step_ptr + group.to(tl.int64)[None, :] * rows + row[:, None], mask=mask, other=0).to(tl.int8)
