"""The "torch" backend: one integer matrix product by `torch._int_mm`, on whole weights unpacked to int8.

    S = V W^T            over all channels, int32, exact          y = s_t s_n S + bias

It needs no compiler and no GPU, and pays with memory: a byte a weight, in place of half of one. All other jobs are
those of the reference.

Processors without VNNI add pairs of products in 16 bits, which overflow. `lacks` finds that out by multiplying the
largest numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from quota.ops.interface import LinearSpec, LinearWeight
from quota.ops.packing import unpack_int32
from quota.ops.reference.backend import LARGEST_COLUMNS, finish, shared_inputs
from quota.ops.reference.plain import PlainTorch
from quota.ops.weights import whole_weight

# What CUDA's `_int_mm` wants: K and N multiples of 8, M above 16. Weights are padded alike on every device.
_MULTIPLE = 8
_ROWS = {"cuda": 32}


class TorchBackend(PlainTorch):
    """`torch._int_mm` on int8 weights; runs wherever torch does."""

    name = "torch"

    def lacks(self, spec: LinearSpec) -> str | None:
        if spec.inputs.bits not in (4, 8):
            return "it multiplies integers of 4 and 8 bits only"
        if spec.columns > LARGEST_COLUMNS:
            return f"sums over {spec.columns} channels do not fit 32 bits"
        if not _products_are_exact():
            return "int8 products overflow on this processor, which lacks VNNI instructions"
        return None

    def sums(self, values: Tensor, weight: LinearWeight) -> Tensor:
        """S of v int8 [M, K]: int32 [M, N]."""
        whole = _prepared(weight)
        padding = (0, whole.shape[1] - values.shape[1], 0, max(0, _ROWS.get(values.device.type, 1) - len(values)))
        operand = functional.pad(values, padding).contiguous()
        product = torch._int_mm(operand, whole.T)  # pyright: ignore[reportPrivateImportUsage]
        return product[: len(values), : weight.spec.rows]

    def linear(self, x: Tensor, weights: Sequence[LinearWeight]) -> list[Tensor]:
        """x [M, K] -> [M, N] for each weight, in the same type; QuotaError for NaN or infinity in x."""
        values, scale = self.quantize(x, shared_inputs(weights))
        return [finish(self.sums(values, each), scale, each).to(x.dtype).contiguous() for each in weights]


def _prepared(weight: LinearWeight) -> Tensor:
    """w = g q, int8 [N, K] padded with zeros to multiples of 8; made at the first use."""
    found = weight.prepared.get(TorchBackend.name)
    if found is None:
        whole = whole_weight(unpack_int32(weight.packed, weight.spec.bits, weight.spec.columns), weight.step)
        found = functional.pad(whole, (0, -whole.shape[1] % _MULTIPLE, 0, -len(whole) % _MULTIPLE)).contiguous()
        weight.prepared[TorchBackend.name] = found
    return found


@lru_cache
def _products_are_exact() -> bool:
    """Whether this machine multiplies the largest operands without overflow.

    Tried in the main memory: GPUs have no such limit.
    """
    ends = torch.tensor((-128, 127), dtype=torch.int8, device="cpu").repeat_interleave(16)[:, None].repeat(1, 64)
    products = torch._int_mm(ends, ends.T)  # pyright: ignore[reportPrivateImportUsage]
    return torch.equal(products, ends.int() @ ends.int().T)
