"""The reference backend: every job in exact integer arithmetic and plain torch, the definition of the others.

    y_tn = s_t s_n S_tn + bias_n            S_tn = sum_k v_tk w_nk               an exact integer

v are the whole activations of `quota.ops.activations`, w the whole weights g q of `quota.ops.weights` (docs/method.md,
numbers of 4 bits). Every other backend must produce the same S, to the last unit, and this one is what they are
compared with; S is below 2^31 up to 131,071 channels. It comes from float32 matrix products over 1,024 channels at a
time, which are far faster in torch than integer ones and exact here: a product is at most 2^14 in size, so 1,024 of
them stay within 2^24, and float32 holds every integer up to there, in whatever order the terms are added. `sums_naive`
is the same in int32, for the tests. The other jobs are those of `quota.ops.reference.plain`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.hadamard import block_hadamard
from quota.ops.interface import InputSpec, LinearSpec, LinearWeight
from quota.ops.packing import unpack_int32
from quota.ops.reference.plain import PlainTorch
from quota.ops.weights import dequantize_weight, whole_weight

LARGEST_COLUMNS = 131_071
_EXACT_COLUMNS = 1 << 10


class ReferenceBackend(PlainTorch):
    """Runs everywhere and lacks nothing that int32 holds; meant to be right, not fast."""

    name = "reference"

    def lacks(self, spec: LinearSpec) -> str | None:
        if spec.columns > LARGEST_COLUMNS:
            return f"sums over {spec.columns} channels do not fit 32 bits"
        return None

    def sums(self, values: Tensor, weight: LinearWeight) -> Tensor:
        """S of v int8 [M, K]: int32 [M, N]."""
        # Autocast would turn exact products into bfloat16 ones.
        with torch.autocast(values.device.type, enabled=False):
            return sums(values, _whole(weight))

    def linear(self, x: Tensor, weights: Sequence[LinearWeight]) -> list[Tensor]:
        """x [M, K] -> [M, N] for each weight, in the same type; QuotaError for NaN or infinity in x."""
        inputs = shared_inputs(weights)
        if inputs.bits == 16:
            with torch.autocast(x.device.type, enabled=False):
                return [_unquantized(block_hadamard(x.float(), inputs.hadamard), each).to(x.dtype) for each in weights]
        values, scale = self.quantize(x, inputs)
        return [finish(self.sums(values, each), scale, each).to(x.dtype) for each in weights]


def shared_inputs(weights: Sequence[LinearWeight]) -> InputSpec:
    """How the inputs of these weights are quantised. QuotaError if not all alike."""
    first, *rest = [each.spec.inputs for each in weights]
    if any(other != first for other in rest):
        raise QuotaError("layers that quantise their inputs in different ways cannot share them")
    return first


def finish(sums: Tensor, scale: Tensor, weight: LinearWeight) -> Tensor:
    """y of S int32 [M, N] and s_t [M]: float32 [M, N]."""
    y = sums.to(torch.float32).mul_(weight.scale).mul_(scale.unsqueeze(-1))
    return y if weight.bias is None else y.add_(weight.bias)


def sums(values: Tensor, weight: Tensor) -> Tensor:
    """S of v int8 [M, K] and w int8 [N, K]: int32 [M, N]."""
    total = torch.zeros(len(values), len(weight), dtype=torch.int32, device=values.device)
    for first in range(0, values.shape[1], _EXACT_COLUMNS):
        channels = slice(first, first + _EXACT_COLUMNS)
        total += (values[:, channels].float() @ weight[:, channels].float().T).to(torch.int32)
    return total


def sums_naive(values: Tensor, weight: Tensor) -> Tensor:
    """The same by its definition, every product and sum in int32."""
    return (values.to(torch.int32)[:, None] * weight.to(torch.int32)[None]).sum(-1, dtype=torch.int32)


def _whole(weight: LinearWeight) -> Tensor:
    """w = g q, int8 [N, K]."""
    return whole_weight(unpack_int32(weight.packed, weight.spec.bits, weight.spec.columns), weight.step)


def _unquantized(x: Tensor, weight: LinearWeight) -> Tensor:
    q = unpack_int32(weight.packed, weight.spec.bits, weight.spec.columns)
    y = x @ dequantize_weight(q, weight.step, weight.scale).T
    return y if weight.bias is None else y.add_(weight.bias)
