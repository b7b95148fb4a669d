"""The linear operator on the CPU: the C++ kernels of `src/linear*` behind the backend's interface.

Rotation, quantisation, integer product, scales and bias are one call for all weights that read the same inputs. Packed
weights are read as the checkpoint holds them; what is prepared is the steps of 4-bit ones, a byte for a group of
weights, in the order in which the kernels take them. Weights of 8 bits have no steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_int64
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from quota.errors import QuotaError
from quota.ops.activations import NOT_FINITE
from quota.ops.cpu.library import address, new, require, run, typed
from quota.ops.interface import InputSpec, LinearSpec, LinearWeight
from quota.ops.reference.backend import LARGEST_COLUMNS, shared_inputs

SMALLEST_GROUP = 8
"""Channels that one 32-bit word of packed 4-bit weights holds."""
LARGEST_GROUP = 256
OUTPUTS = 16
"""Outputs whose steps stand together: OUTPUTS in src/linear.h."""

_WORK = "the linear operator"


def lacks(spec: LinearSpec) -> str | None:
    """Why these kernels cannot run such a layer; None if they can."""
    if spec.columns > LARGEST_COLUMNS:
        return f"sums over {spec.columns} channels do not fit 32 bits"
    return _lacks_weights(spec) or lacks_inputs(spec.inputs)


def lacks_inputs(inputs: InputSpec) -> str | None:
    """Why these kernels cannot quantise such inputs; None if they can."""
    if inputs.bits not in (4, 8):
        return f"its kernels are for 4- and 8-bit activations, not {inputs.bits}"
    if inputs.columns % SMALLEST_GROUP or not inputs.columns:
        return f"its kernels take multiples of {SMALLEST_GROUP} input channels, not {inputs.columns}"
    if (inputs.bits == 4 and not _is_group(inputs.group)) or inputs.hadamard > LARGEST_GROUP:
        return f"its kernels take groups of {SMALLEST_GROUP} to {LARGEST_GROUP} channels, not {inputs.group}"
    return None


def input_arguments(inputs: InputSpec) -> tuple[int, int, int, int]:
    """Columns, rotation, group and bits, as every entry point of src/linear.cpp takes them."""
    return inputs.columns, inputs.hadamard, inputs.group, inputs.bits


def linear(x: Tensor, weights: Sequence[LinearWeight]) -> list[Tensor]:
    """x [M, K] float32, bfloat16 or float16 -> [M, N] of each weight in the same type. QuotaError for NaN or infinity.

    A row of a result depends neither on the other rows and their number nor on threads and the other weights.
    """
    x, inputs, rows = x.contiguous(), shared_inputs(weights), len(x)
    results = [new(rows, weight.spec.rows, dtype=x.dtype) for weight in weights]
    fields = [field for weight, y in zip(weights, results, strict=True) for field in _fields(weight, y)]
    run(
        "quota_linear",
        *typed("inputs", x, (rows, inputs.columns)),
        *(rows, *input_arguments(inputs), (c_int64 * len(fields))(*fields), len(weights)),
        refusal=NOT_FINITE,
        work=_WORK,
    )
    return results


def sums(values: Tensor, weight: LinearWeight) -> Tensor:
    """The integer sums inside `linear`: v int8 [M, K] -> int32 [M, N], by the kernel that it takes for so many rows."""
    rows, columns = len(values), weight.spec.columns
    y = new(rows, weight.spec.rows, dtype=torch.int32)
    fields = _fields(weight, y)
    run(
        "quota_sums",
        address("values", values, (rows, columns), torch.int8),
        *(rows, columns, (c_int64 * len(fields))(*fields)),
        work=_WORK,
    )
    return y


def quantize(x: Tensor, inputs: InputSpec) -> tuple[Tensor, Tensor]:
    """What `linear` makes of x [M, K]: v int8 [M, K] and s float32 [M]. QuotaError for NaN or infinity."""
    x, rows = x.contiguous(), len(x)
    values, scale = new(rows, inputs.columns, dtype=torch.int8), new(rows)
    run(
        "quota_quantize",
        *typed("inputs", x, (rows, inputs.columns)),
        *(rows, *input_arguments(inputs), values.data_ptr(), scale.data_ptr()),
        refusal=NOT_FINITE,
        work=_WORK,
    )
    return values, scale


def _lacks_weights(spec: LinearSpec) -> str | None:
    if spec.bits not in (4, 8):
        return f"its kernels are for 4- and 8-bit weights, not {spec.bits}"
    if spec.bits == 8 and spec.group != spec.columns:
        return f"its kernels take 8-bit weights with one scale a row, not in groups of {spec.group} channels"
    if spec.bits == 4 and not _is_group(spec.group):
        return f"its kernels take weight groups of {SMALLEST_GROUP} to {LARGEST_GROUP} channels, not {spec.group}"
    return None


def _is_group(group: int) -> bool:
    return SMALLEST_GROUP <= group <= LARGEST_GROUP and group & (group - 1) == 0


@dataclass
class _Known:
    """What has been found out about a weight."""

    steps: Tensor | None
    """As `_prepared` makes them; None for 8 bits."""
    places: tuple[LinearSpec, int, int, int] | None = None
    """Its sizes, and where its tensors stood, when they were found to be what the kernels read."""


def _fields(weight: LinearWeight, y: Tensor) -> tuple[int, ...]:
    """`Weights` in src/linear.h, field by field, with `y` for its result."""
    spec, bias = weight.spec, weight.bias
    packed, scale = weight.packed.data_ptr(), weight.scale.data_ptr()
    places = spec, packed, scale, 0 if bias is None else bias.data_ptr()
    known = weight.prepared.get("cpu") or _prepare(weight)
    if known.places != places:
        _check(weight, known.steps)
        known.places = places
    steps = 0 if known.steps is None else known.steps.data_ptr()
    return packed, steps, scale, places[3], y.data_ptr(), spec.rows, spec.group, spec.bits


def _check(weight: LinearWeight, steps: Tensor | None) -> None:
    """QuotaError unless the kernels can read all of it."""
    spec, rows = weight.spec, weight.spec.rows
    require("packed weights", weight.packed, (rows, spec.columns * spec.bits // 32), torch.int32)
    require("weight scales", weight.scale, (rows,), torch.float32)
    if steps is not None:
        require("weight steps", steps, (-(-rows // OUTPUTS), spec.columns // spec.group, OUTPUTS), torch.uint8)
    if weight.bias is not None:
        require("bias", weight.bias, (rows,), torch.float32)


def _prepare(weight: LinearWeight) -> _Known:
    spec, steps = weight.spec, None
    lacking = _lacks_weights(spec)
    if lacking is not None:
        raise QuotaError(f"the cpu backend cannot run this: {lacking}; choose another backend")
    if spec.bits == 4:
        require("weight steps", weight.step, (spec.rows, spec.columns // spec.group), torch.uint8)
        steps = _prepared(weight.step)
    # Several threads may be the first. What one has put there stays: another's kernel may be reading it.
    return weight.prepared.setdefault("cpu", _Known(steps))


def _prepared(step: Tensor) -> Tensor:
    """Steps [N, G] as [N / OUTPUTS, G, OUTPUTS], ones behind the last output."""
    padded = functional.pad(step, (0, 0, 0, -len(step) % OUTPUTS), value=1)
    return padded.view(-1, OUTPUTS, step.shape[1]).transpose(1, 2).contiguous()
