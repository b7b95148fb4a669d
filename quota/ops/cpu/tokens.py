"""Risk and scores of visual tokens, and the choice among them, on the CPU: one pass each, where torch takes twenty."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref, c_int64

import torch
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.choice import NOT_A_NUMBER, Cut
from quota.ops.cpu.library import address, new, rows_of, run, typed
from quota.ops.cpu.linear import input_arguments, lacks_inputs
from quota.ops.interface import InputSpec
from quota.ops.reference import tokens as reference


def activation_error(x: Tensor, inputs: InputSpec) -> Tensor:
    """||Q(x H) - x H||_2 of each row of x [M, K] -> [M] float32; NaN for a row that holds NaN or infinity."""
    if lacks_inputs(inputs):
        return reference.activation_error(x, inputs)
    x = rows_of(x.detach())
    rows, step = len(x), x.stride(0)
    columns, *others = input_arguments(inputs)
    errors = new(rows)
    run(
        "quota_activation_error",
        *typed("tokens", x, (rows, columns), rows=True),
        *(rows, columns, step, *others, errors.data_ptr()),
        work="the errors of activations",
    )
    return errors


def information(hidden: Tensor, valid: Tensor, counts: Tensor, noise: float) -> Tensor:
    """As `quota.ops.reference.tokens.information`."""
    hidden, valid, counts = hidden.float().contiguous(), valid.contiguous(), counts.contiguous()
    batch, tokens, width = hidden.shape
    scores = new(batch, tokens)
    run(
        "quota_information",
        address("tokens", hidden, (batch, tokens, width), torch.float32),
        address("valid", valid, (batch, tokens), torch.bool),
        address("counts", counts, (batch,), torch.int64),
        *(batch, tokens, width, noise, scores.data_ptr()),
        work=f"the scores of {tokens} tokens",
    )
    return scores


def cut(score: Tensor, counts: Sequence[int], valid: Tensor, places: Tensor, others: Tensor) -> Cut:
    """As `quota.ops.choice.cut`."""
    score, valid, places = score.float().contiguous(), valid.contiguous(), places.contiguous()
    kept = others.clone(memory_format=torch.contiguous_format)
    (rows, tokens), (batch, length) = score.shape, kept.shape
    if len(counts) != rows:
        raise QuotaError(f"there must be a count for each of {rows} rows of visual tokens, not {len(counts)}")
    slots, filled = new(kept.numel(), dtype=torch.int64), new(kept.numel(), dtype=torch.bool)
    most = c_int64()
    run(
        "quota_cut",
        address("scores", score, (rows, tokens), torch.float32),
        address("valid", valid, (rows, tokens), torch.bool),
        address("places", places, (rows, tokens), torch.int64),
        (c_int64 * rows)(*counts),
        *(rows, tokens),
        address("other tokens", kept, (batch, length), torch.bool),
        *(batch, length, slots.data_ptr(), filled.data_ptr(), byref(most)),
        refusal=NOT_A_NUMBER,
        work=f"a choice among {tokens} tokens",
    )
    layout = (batch, most.value), (most.value, 1)
    return Cut(kept, slots.as_strided(*layout), filled.as_strided(*layout))
