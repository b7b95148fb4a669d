"""The W4A4 linear operator on the CPU: the C++ kernels of `src/linear*` behind the backend's interface.

Rotation, quantisation, integer product, scales and bias are one call. Packed weights are read as the checkpoint holds
them, so nothing is prepared and no second copy is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.cpu.library import address, run, typed
from quota.ops.interface import LinearSpec, LinearWeight

SMALLEST_GROUP = 8
"""Channels that one 32-bit word of packed weights holds."""
LARGEST_GROUP = 256

_WORK = "the codes of the activations"
_NOT_FINITE = "activations hold NaN or infinity and cannot be quantised; run the model in float32 to find where"


def lacks(spec: LinearSpec) -> str | None:
    """Why these kernels cannot run such a layer; None if they can."""
    if (spec.weight_bits, spec.activation_bits) != (4, 4):
        return f"its kernels are for W4A4, not W{spec.weight_bits}A{spec.activation_bits}"
    if spec.columns % SMALLEST_GROUP or not spec.columns:
        return f"its kernels take multiples of {SMALLEST_GROUP} input channels, not {spec.columns}"
    if not SMALLEST_GROUP <= spec.activation_group <= LARGEST_GROUP or spec.hadamard > LARGEST_GROUP:
        return f"its kernels take groups of {SMALLEST_GROUP} to {LARGEST_GROUP} channels, not {spec.activation_group}"
    return None


def linear(x: Tensor, weight: LinearWeight) -> Tensor:
    """x [M, K] float32, bfloat16 or float16 -> [M, N] in the same type. QuotaError for NaN or infinity in x.

    A row of the result depends neither on the other rows and their number nor on the number of threads.
    """
    spec, x, bias = weight.spec, x.contiguous(), weight.bias
    # Exact: scales are stored as bfloat16 holds them, even where a caller has converted the whole model.
    scale = weight.scale.to(torch.bfloat16)
    rows, groups = len(x), scale.shape[-1]
    if spec.columns < SMALLEST_GROUP * groups:
        raise QuotaError(f"the cpu backend needs weight groups of {SMALLEST_GROUP} channels; choose another backend")
    y = torch.empty(rows, spec.rows, dtype=x.dtype)
    run(
        "quota_linear",
        *typed("inputs", x, (rows, spec.columns)),
        *(rows, spec.columns, spec.hadamard, spec.activation_group),
        address("packed weights", weight.packed, (spec.rows, spec.columns // SMALLEST_GROUP), torch.int32),
        address("weight scales", scale, (spec.rows, groups), torch.bfloat16),
        *(groups, spec.rows),
        None if bias is None else address("bias", bias, (spec.rows,), torch.float32),
        y.data_ptr(),
        refusal=_NOT_FINITE,
        work=_WORK,
    )
    return y


def group_sums(q: Tensor, zero: Tensor, packed: Tensor, bits: int, group: int) -> Tensor:
    """The integer sums inside `linear`: q uint8 [M, K], zero int32 [M, K / group] -> int32 [M, N, K / group].

    By the kernel that `linear` takes for so many rows and such a group, which is 8, 16, 32 or 64.
    """
    if bits != 4:
        raise QuotaError(f"the cpu backend has kernels for 4-bit weights, not {bits}; choose another backend")
    codes = (q.to(torch.int32) - zero.repeat_interleave(group, dim=1)).to(torch.int8)
    (rows, columns), outputs = q.shape, len(packed)
    sums = torch.empty(rows, outputs, columns // group, dtype=torch.int32)
    run(
        "quota_group_sums",
        address("codes", codes, (rows, columns), torch.int8),
        *(rows, columns, group),
        address("packed weights", packed, (outputs, columns // SMALLEST_GROUP), torch.int32),
        *(outputs, sums.data_ptr()),
        work=_WORK,
    )
    return sums


def quantize(x: Tensor, group: int, hadamard: int) -> tuple[Tensor, Tensor]:
    """What `linear` makes of x [M, K]: q - zero as int8 [M, K], and scale float32 [M, K / group]."""
    x = x.contiguous()
    rows, columns = x.shape
    codes, scale = torch.empty(rows, columns, dtype=torch.int8), torch.empty(rows, columns // group)
    run(
        "quota_quantize",
        *typed("inputs", x, (rows, columns)),
        *(rows, columns, hadamard, group, codes.data_ptr(), scale.data_ptr()),
        refusal=_NOT_FINITE,
        work=_WORK,
    )
    return codes, scale
