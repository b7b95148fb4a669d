"""Prefill attention that also adds up what each token receives, without ever holding the attention map.

    A_h = softmax(scaling * Q_h K_h^T, causal or not, visible keys only)      out_h = A_h V_h
    sums[r, j] = 1/H sum_h sum_{i in rows_r} A_h[i, j]

The first kernel runs down the keys with a running maximum and sum, and keeps each query's logarithm of the sum of
exponentials, L. With it the second one knows any entry of A from its logit alone, exp(logit - L), and adds up columns:
it stands on a tile of keys and runs down the queries. The sums of a head are its own, so no two programs add to one
number, and the result is the same in every run.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from quota.ops.triton.launch import launch, power_of_two, tiles
from quota.ops.triton.tiles import DOT


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor,
    visible: Tensor,
    scaling: float,
    causal: bool = True,
) -> tuple[Tensor, Tensor]:
    """As `quota.ops.interface.Backend.attention`; zeros for a query that sees nothing."""
    query, key, value = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (query, key, value))
    batch, heads, queries, width = query.shape
    groups, length = key.shape[1:3]
    # Zeros, as a tile without work (no queries, no keys) writes nothing.
    result = query.new_zeros(batch, heads, queries, width)
    logsum = torch.zeros(batch, heads, queries, dtype=torch.float32, device=query.device)
    sums = torch.zeros(batch, heads, rows.shape[1], length, dtype=torch.float32, device=query.device)
    visible, weights = visible.contiguous(), rows.float().contiguous()
    common = (heads, heads // max(1, groups), queries, length, scaling)
    # The tiles of float32 would not fit the shared memory at the size of those of 16 bits.
    side = 64 if query.element_size() == 2 else 32
    tile: dict[str, Any] = {"WIDTH": width, "SIDE": power_of_two(width, DOT), "QUERIES": side, "KEYS": side}
    tile |= {"CAUSAL": causal, "num_stages": 2}
    launch(
        _forward,
        (tiles(queries, tile["QUERIES"]), batch * heads),
        *(query, key, value, visible, result, logsum, *common),
        *(*query.stride()[:3], *key.stride()[:3], *value.stride()[:3]),
        **tile,
    )
    launch(
        _columns,
        (tiles(length, tile["KEYS"]), batch * heads),
        *(query, key, visible, weights, logsum, sums, *common, rows.shape[1]),
        *(*query.stride()[:3], *key.stride()[:3]),
        SETS=power_of_two(rows.shape[1], DOT),
        **tile,
    )
    return result, sums.mean(dim=1) if heads else sums.sum(dim=1)


@triton.jit
def _logits(query, key, at, place, visible, scaling, CAUSAL: tl.constexpr):
    """Logits [queries at `at`, keys at `place`]; minus infinity where a query does not see a key."""
    logits = tl.dot(query, tl.trans(key), input_precision="tf32x3") * scaling
    seen = visible[None, :]
    if CAUSAL:
        seen = seen & (place[None, :] <= at[:, None])
    return tl.where(seen, logits, float("-inf"))


@triton.jit
def _load(ptr, line, stride, lines, WIDTH: tl.constexpr, SIDE: tl.constexpr):
    """Lines [.., SIDE] of a matrix with WIDTH columns; zeros beyond it."""
    channel = tl.arange(0, SIDE)
    inside = (line < lines)[:, None] & (channel < WIDTH)[None, :]
    return tl.load(ptr + line.to(tl.int64)[:, None] * stride + channel[None, :], mask=inside, other=0.0)


@triton.jit(do_not_specialize=["queries", "length"])
def _forward(
    q_ptr, k_ptr, v_ptr, visible_ptr, result_ptr, logsum_ptr, heads, shared, queries, length, scaling,
    q_b, q_h, q_t, k_b, k_g, k_t, v_b, v_g, v_t,
    WIDTH: tl.constexpr, SIDE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * QUERIES
    row = tl.program_id(1).to(tl.int64)
    batch, head = row // heads, row % heads
    group = head // shared
    line = first + tl.arange(0, QUERIES)
    # The queries are those of the last tokens.
    at = line + length - queries
    query = _load(q_ptr + batch * q_b + head * q_h, line, q_t, queries, WIDTH, SIDE)

    largest = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    result = tl.zeros((QUERIES, SIDE), tl.float32)
    reach = tl.minimum(length, first + QUERIES + length - queries) if CAUSAL else length
    for start in range(0, reach, KEYS):
        place = start + tl.arange(0, KEYS)
        key = _load(k_ptr + batch * k_b + group * k_g, place, k_t, length, WIDTH, SIDE)
        visible = tl.load(visible_ptr + batch * length + place, mask=place < length, other=0) != 0
        logits = _logits(query, key, at, place, visible, scaling, CAUSAL)
        both = tl.maximum(largest, tl.max(logits, axis=1))
        base = tl.where(both == float("-inf"), 0.0, both)
        p = tl.exp(logits - base[:, None])
        before = tl.exp(largest - base)
        value = _load(v_ptr + batch * v_b + group * v_g, place, v_t, length, WIDTH, SIDE)
        result = tl.dot(p.to(value.dtype), value, result * before[:, None], input_precision="tf32x3")
        total = total * before + tl.sum(p, axis=1)
        largest = both

    # A query that sees nothing: exp(logit - infinity) is 0 in every column.
    logsum = tl.where(total == 0.0, float("inf"), largest + tl.log(total))
    tl.store(logsum_ptr + row * queries + line, logsum, mask=line < queries)
    result = result / tl.where(total == 0.0, 1.0, total)[:, None]
    channel = tl.arange(0, SIDE)
    inside = (line < queries)[:, None] & (channel < WIDTH)[None, :]
    target = result_ptr + (row * queries + line)[:, None] * WIDTH + channel[None, :]
    tl.store(target, result.to(result_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["queries", "length", "sets"])
def _columns(
    q_ptr, k_ptr, visible_ptr, weight_ptr, logsum_ptr, sums_ptr, heads, shared, queries, length, scaling, sets,
    q_b, q_h, q_t, k_b, k_g, k_t,
    SETS: tl.constexpr, WIDTH: tl.constexpr, SIDE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    CAUSAL: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * KEYS
    row = tl.program_id(1).to(tl.int64)
    batch, head = row // heads, row % heads
    group = head // shared
    place = first + tl.arange(0, KEYS)
    key = _load(k_ptr + batch * k_b + group * k_g, place, k_t, length, WIDTH, SIDE)
    visible = tl.load(visible_ptr + batch * length + place, mask=place < length, other=0) != 0
    choice = tl.arange(0, SETS)

    sums = tl.zeros((SETS, KEYS), tl.float32)
    # If causal, no earlier query sees these keys.
    earliest = tl.maximum(0, first - (length - queries)) // QUERIES * QUERIES if CAUSAL else 0
    for start in range(earliest, queries, QUERIES):
        line = start + tl.arange(0, QUERIES)
        query = _load(q_ptr + batch * q_b + head * q_h, line, q_t, queries, WIDTH, SIDE)
        logsum = tl.load(logsum_ptr + row * queries + line, mask=line < queries, other=float("inf"))
        logits = _logits(query, key, line + length - queries, place, visible, scaling, CAUSAL)
        p = tl.exp(logits - logsum[:, None])
        chosen = (choice < sets)[:, None] & (line < queries)[None, :]
        weights = weight_ptr + (batch * sets + choice)[:, None] * queries + line[None, :]
        weight = tl.load(weights, mask=chosen, other=0.0)
        # Weights are 0 and 1, exact in TF32.
        sums = tl.dot(weight, p, sums, input_precision="tf32x3")
    inside = (choice < sets)[:, None] & (place < length)[None, :]
    tl.store(sums_ptr + (row * sets + choice)[:, None] * length + place[None, :], sums, mask=inside)
