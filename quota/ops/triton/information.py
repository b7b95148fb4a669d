"""The choice of the visual tokens that tell most: one program an image, which goes from choice to choice by itself.

The products of all tokens are torch's. A program then holds what is left of every token's variance, and takes turns:

    b      = argmax of what is left                    the first of equals
    new_i  = (G_b,i - sum_r F_r,b F_r,i) / sqrt(left_b + s2)
    left_i = left_i - new_i^2                          F: the rows so far; `new` becomes the next of them

In torch a choice is a dozen launches (quota/ops/reference/tokens.py), and a picture takes hundreds of choices.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from quota.ops.reference import tokens as reference
from quota.ops.triton.launch import launch, power_of_two

# Rows of F that are read at a time.
_ROWS = 8


def information(hidden: Tensor, valid: Tensor, counts: Tensor, noise: float) -> Tensor:
    """Score of visual tokens, hidden [B, V, D] -> [B, V] float32, as `quota.ops.reference.tokens.information`."""
    batch, tokens = valid.shape
    products, left, chosen, spread = reference.opening(hidden, valid, counts, noise)
    room = int(chosen.max()) if batch else 0
    factor = torch.empty(batch, room, tokens, dtype=torch.float32, device=hidden.device)
    score = torch.empty(batch, tokens, dtype=torch.float32, device=hidden.device)
    launch(
        _choose,
        (batch,),
        *(products, left, valid.contiguous(), chosen, spread, factor, score),
        *(tokens, room, reference.SMALLEST),
        BLOCK=power_of_two(tokens, 32),
        ROWS=_ROWS,
        num_warps=8,
    )
    return score


@triton.jit
def _choose(
    products,
    variances,
    valid,
    chosen,
    spread,
    factor,
    score,
    tokens,
    room,
    smallest,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    place, line = tl.arange(0, BLOCK), tl.arange(0, ROWS)
    inside = place < tokens
    there = tl.load(valid + image * tokens + place, mask=inside, other=0) != 0
    left = tl.load(variances + image * tokens + place, mask=there, other=0.0)
    count, noise = tl.load(chosen + image), tl.load(spread + image)
    products += image * tokens * tokens
    factor += image * room * tokens
    found = tl.zeros((BLOCK,), dtype=tl.float32)
    free = there
    for step in range(0, count):
        among = tl.where(free, left, -float("inf"))
        best = tl.argmax(among, axis=0)
        newest = place == best
        # Of one number the sum is that number.
        most = tl.sum(tl.where(newest, left, 0.0), axis=0)
        found = tl.where(newest, left, found)
        free = free & (place != best)
        shared = tl.load(products + best * tokens + place, mask=inside, other=0.0)
        for first in range(0, step, ROWS):
            row = first + line
            own = tl.load(factor + row * tokens + best, mask=row < step, other=0.0)
            wanted = (row < step)[:, None] & inside[None, :]
            rows = tl.load(factor + row[:, None] * tokens + place[None, :], mask=wanted, other=0.0)
            shared -= tl.sum(own[:, None] * rows, axis=0)
        new = shared / tl.sqrt(tl.maximum(most + noise, smallest))
        tl.store(factor + step * tokens + place, new, mask=inside)
        # Other threads read it at the next choice.
        tl.debug_barrier()
        left -= new * new
    result = tl.where(there, tl.where(free, left, found), 0.0)
    tl.store(score + image * tokens + place, result, mask=inside)
