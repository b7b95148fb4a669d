"""Decode attention that reads the packed cache: one query a sequence, never a dequantised key or value in memory.

With k ~ z + s * q (z and s of a token), a logit needs only products with the integers q,

    query . k  =  z * sum(query) + s * (query . q)                    and so does the output:
    sum_t p_t v_t  =  sum_t p_t z_t + sum_t (p_t s_t) q_t

Keys are stored rotated; the query is rotated instead, as rotations keep products. If they are transformed too, the
query meets them as q back^T (quota/ops/head_transform.py), a matrix product of torch's. A byte's low half is an even
channel and its high half an odd one, so the query and the output are taken apart the same way and nothing is shuffled.

The first kernel takes a piece of the tokens of one key head, with the query heads that share it, and leaves the
piece's maximum, sum and weighted values; the second puts the pieces together. Pieces are cut by token alone, so a
sample's result does not depend on the batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from quota.ops.interface import PackedTensor
from quota.ops.triton.cache import folded_with
from quota.ops.triton.launch import launch, power_of_two, tiles
from quota.ops.triton.tiles import DOT, high_nibbles, low_nibbles, rotate, rotation

_PIECE = 64
# Query heads a program: the least side of a product; most models share a key among fewer.
_HEADS = DOT


def decode_attention(
    query: Tensor,
    keys: PackedTensor,
    values: PackedTensor,
    valid: Tensor | None,
    scaling: float,
    tokens: int | None = None,
    added: Tensor | None = None,
) -> Tensor:
    """query [B, H, 1, D], valid bool [B, T] -> [B, H, 1, D] in the query's type; zeros where nothing is valid.

    `added` float32 [B, H, T] is added to the logits, behind `scaling`.
    """
    batch, heads, _, width = query.shape
    groups, slots = keys.packed.shape[1:3]
    tokens = slots if tokens is None else tokens
    shared, dtype, rotated = heads // max(1, groups), query.dtype, keys.hadamard
    if keys.transform is not None:
        back, rotated = folded_with(keys.transform, keys.hadamard).back, 0
        with torch.autocast(query.device.type, enabled=False):
            query = (query.float().reshape(batch, groups, shared, width) @ back.mT).view(query.shape)
    query = query.contiguous()
    pieces = tiles(tokens, _PIECE)
    tile = {"WIDTH": width, "HEADS": _HEADS, "SIDE": power_of_two(width, 2 * DOT)}
    partial = torch.empty(batch, heads, pieces, width, dtype=torch.float32, device=query.device)
    largest = torch.empty(batch, heads, pieces, dtype=torch.float32, device=query.device)
    total = torch.empty_like(largest)
    mask = None if valid is None else valid.contiguous()
    more = None if added is None else added.contiguous()
    strides = (
        stride
        for stored in (keys, values)
        for tensor in (stored.packed, stored.scale, stored.zero)
        for stride in tensor.stride()[:3]
    )
    launch(
        _pieces,
        (pieces, batch * groups, tiles(shared, _HEADS)),
        *(query, keys.packed, keys.scale, keys.zero, values.packed, values.scale, values.zero),
        *(
            query if mask is None else mask,
            query if more is None else more,
            rotation(rotated, query.device),
            partial,
            largest,
            total,
        ),
        *(groups, shared, tokens, scaling, *strides),
        MASKED=mask is not None,
        ADDED=more is not None,
        HADAMARD=rotated,
        PIECE=_PIECE,
        num_warps=8,
        **tile,
    )
    result = torch.empty_like(query, dtype=dtype)
    launch(
        _together,
        (tiles(batch * heads, _HEADS),),
        *(partial, largest, total, rotation(values.hadamard, query.device), result, batch * heads, pieces),
        HADAMARD=values.hadamard,
        **tile,
    )
    return result


@triton.jit(do_not_specialize=["groups", "shared", "tokens"])
def _pieces(
    query_ptr, k_ptr, k_scale_ptr, k_zero_ptr, v_ptr, v_scale_ptr, v_zero_ptr,
    valid_ptr, added_ptr, matrix_ptr, partial_ptr, largest_ptr, total_ptr, groups, shared, tokens, scaling,
    k_b, k_g, k_t, ks_b, ks_g, ks_t, kz_b, kz_g, kz_t, v_b, v_g, v_t, vs_b, vs_g, vs_t, vz_b, vz_g, vz_t,
    MASKED: tl.constexpr, ADDED: tl.constexpr, HADAMARD: tl.constexpr, PIECE: tl.constexpr,
    WIDTH: tl.constexpr, HEADS: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    piece, pieces = tl.program_id(0), tl.num_programs(0)
    row = tl.program_id(1).to(tl.int64)
    batch, group = row // groups, row % groups
    # Query heads of one key head follow one another.
    head = tl.program_id(2) * HEADS + tl.arange(0, HEADS)
    channel = tl.arange(0, SIDE)
    line = row * shared + head
    place = line[:, None] * WIDTH + channel[None, :]
    inside = (head < shared)[:, None] & (channel < WIDTH)[None, :]
    query = tl.load(query_ptr + place, mask=inside, other=0.0).to(tl.float32)
    query = tl.reshape(rotate(tl.reshape(query, (HEADS * SIDE,)), matrix_ptr, HADAMARD, HEADS * SIDE), (HEADS, SIDE))
    even, odd = tl.split(tl.reshape(query, (HEADS, SIDE // 2, 2)))

    token = piece * PIECE + tl.arange(0, PIECE)
    byte = tl.arange(0, SIDE // 2)
    held = token < tokens
    inside = held[:, None] & (byte < WIDTH // 2)[None, :]
    k = tl.load(k_ptr + batch * k_b + group * k_g + token[:, None] * k_t + byte[None, :], mask=inside, other=0)
    k_scale = tl.load(k_scale_ptr + batch * ks_b + group * ks_g + token * ks_t, mask=held, other=0).to(tl.float32)
    k_zero = tl.load(k_zero_ptr + batch * kz_b + group * kz_g + token * kz_t, mask=held, other=0).to(tl.float32)
    # Integers below 16 are exact in TF32; three products of its parts keep the query in float32.
    low, high = tl.trans(low_nibbles(k).to(tl.float32)), tl.trans(high_nibbles(k).to(tl.float32))
    logits = tl.dot(even, low, input_precision="tf32x3")
    logits = tl.dot(odd, high, logits, input_precision="tf32x3")
    logits = (logits * k_scale[None, :] + tl.sum(query, axis=1)[:, None] * k_zero[None, :]) * scaling
    if ADDED:
        asked = (head < shared)[:, None] & held[None, :]
        logits += tl.load(added_ptr + line[:, None] * tokens + token[None, :], mask=asked, other=0.0)
    seen = held
    if MASKED:
        seen = seen & (tl.load(valid_ptr + batch * tokens + token, mask=held, other=0) != 0)
    logits = tl.where(seen[None, :], logits, float("-inf"))
    largest = tl.max(logits, axis=1)
    p = tl.exp(logits - tl.where(largest == float("-inf"), 0.0, largest)[:, None])

    v = tl.load(v_ptr + batch * v_b + group * v_g + token[:, None] * v_t + byte[None, :], mask=inside, other=0)
    v_scale = tl.load(v_scale_ptr + batch * vs_b + group * vs_g + token * vs_t, mask=held, other=0).to(tl.float32)
    v_zero = tl.load(v_zero_ptr + batch * vz_b + group * vz_g + token * vz_t, mask=held, other=0).to(tl.float32)
    zeros = tl.sum(p * v_zero[None, :], axis=1)[:, None]
    p_scaled = p * v_scale[None, :]
    even = tl.dot(p_scaled, low_nibbles(v).to(tl.float32), input_precision="tf32x3") + zeros
    odd = tl.dot(p_scaled, high_nibbles(v).to(tl.float32), input_precision="tf32x3") + zeros

    place = line * pieces + piece
    tl.store(largest_ptr + place, largest, mask=head < shared)
    tl.store(total_ptr + place, tl.sum(p, axis=1), mask=head < shared)
    inside = (head < shared)[:, None] & (channel < WIDTH)[None, :]
    tl.store(partial_ptr + place[:, None] * WIDTH + channel[None, :], tl.interleave(even, odd), mask=inside)


@triton.jit(do_not_specialize=["heads", "pieces"])
def _together(
    partial_ptr, largest_ptr, total_ptr, matrix_ptr, result_ptr, heads, pieces,
    HADAMARD: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    # Heads of all samples in one row.
    head = tl.program_id(0).to(tl.int64) * HEADS + tl.arange(0, HEADS)
    channel = tl.arange(0, SIDE)
    inside = (head < heads)[:, None] & (channel < WIDTH)[None, :]
    largest = tl.full((HEADS,), float("-inf"), tl.float32)
    total = tl.zeros((HEADS,), tl.float32)
    result = tl.zeros((HEADS, SIDE), tl.float32)
    for piece in range(pieces):
        place = head * pieces + piece
        other = tl.load(largest_ptr + place, mask=head < heads, other=float("-inf"))
        both = tl.maximum(largest, other)
        base = tl.where(both == float("-inf"), 0.0, both)
        before, now = tl.exp(largest - base), tl.exp(other - base)
        part = tl.load(partial_ptr + place[:, None] * WIDTH + channel[None, :], mask=inside, other=0.0)
        result = result * before[:, None] + part * now[:, None]
        total = total * before + tl.load(total_ptr + place, mask=head < heads, other=0.0) * now
        largest = both
    result = result / tl.where(total == 0.0, 1.0, total)[:, None]
    result = rotate(tl.reshape(result, (HEADS * SIDE,)), matrix_ptr, HADAMARD, HEADS * SIDE)
    place = head[:, None] * WIDTH + channel[None, :]
    result = tl.reshape(result, (HEADS, SIDE)).to(result_ptr.dtype.element_ty)
    tl.store(result_ptr + place, result, mask=inside)
