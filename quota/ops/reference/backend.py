"""The reference backend: every job in exact integer arithmetic and plain torch, the definition of the others.

    y[m, n] = sum_g  scale_x[m, g] * scale_w[n, g] * S[m, n, g]  +  bias[n]
    S[m, n, g] = sum_{k in g} (q_x[m, k] - zero[m, g]) * q_w[n, k]              an integer, exactly

Every other backend must produce the same S, to the last unit, and this one is what they are compared with.
S comes from float32 matrix products, which are far faster in torch than integer ones and exact here:
products are at most 255 * 128 in size, so a sum of up to 512 of them stays below 2^24, and float32 holds
every integer up to there, in whatever order the terms are added. `group_sums_naive` is the same in int32,
for the tests. The other jobs are those of `quota.ops.reference.plain`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from quota.ops.hadamard import block_hadamard
from quota.ops.integer import dequantize_weight, quantize_activation, unpack_int32
from quota.ops.interface import LinearSpec, LinearWeight
from quota.ops.reference.plain import PlainTorch


class ReferenceBackend(PlainTorch):
    """Runs everywhere and lacks nothing; meant to be right, not fast."""

    name = "reference"

    def lacks(self, spec: LinearSpec) -> str | None:
        return None

    def linear(self, x: Tensor, weight: LinearWeight) -> Tensor:
        """x [M, K] -> [M, N] in the same type; QuotaError for NaN or infinity, unless activations have 16 bits."""
        # Autocast would turn exact products into bfloat16 ones.
        with torch.autocast(x.device.type, enabled=False):
            y = self._linear(x.float(), weight)
        return y.to(x.dtype)

    def group_sums(self, q: Tensor, zero: Tensor, packed: Tensor, bits: int, group: int) -> Tensor:
        """S of q uint8 [M, K], zero int32 [M, K / group] and packed weights: int32 [M, N, K / group]."""
        weight = unpack_int32(packed, bits, q.shape[1])
        return group_sums(_centred(q, zero), weight, group)

    def _linear(self, x: Tensor, weight: LinearWeight) -> Tensor:
        spec = weight.spec
        x = block_hadamard(x, spec.hadamard)
        if spec.activation_bits == 16:
            q = unpack_int32(weight.packed, spec.weight_bits, spec.columns)
            y = x @ dequantize_weight(q, weight.scale).T
        else:
            quantized = quantize_activation(x, spec.activation_bits, spec.activation_group)
            y = quantized_product(*quantized, weight.packed, weight.scale, spec.weight_bits)
        return y if weight.bias is None else y.add_(weight.bias)


def group_sums(x: Tensor, weight: Tensor, group: int) -> Tensor:
    """S of whole x [M, K] (|x| < 256) and weight [N, K] (|weight| <= 128): int32 [M, N, K / group]."""
    sums = torch.empty(x.shape[0], weight.shape[0], x.shape[1] // group, dtype=torch.int32, device=x.device)
    for index, part in enumerate(_sums_per_group(x.float(), weight.float(), group)):
        sums[..., index] = part.to(torch.int32)
    return sums


def group_sums_naive(x: Tensor, weight: Tensor, group: int) -> Tensor:
    """The same by its definition, every product and sum in int32."""
    products = x.to(torch.int32)[:, None, :] * weight.to(torch.int32)[None, :, :]
    return products.unflatten(-1, (-1, group)).sum(-1, dtype=torch.int32)


def quantized_product(
    x: Tensor, x_scale: Tensor, x_zero: Tensor, packed: Tensor, weight_scale: Tensor, bits: int
) -> Tensor:
    """y of quantised activations and weights, without bias: float32 [M, N].

    x uint8 [M, K], x_scale and x_zero [M, K / g] from `quantize_activation`; packed int32 [N, K * bits /
    32] from `pack_int32`; weight_scale [N, K / h]. Group sizes g and h are powers of two and may differ;
    the smaller one is the group of the sums. A row of the result does not depend on the other rows.
    """
    channels = x.shape[1]
    weight = unpack_int32(packed, bits, channels).float()
    groups = max(x_scale.shape[1], weight_scale.shape[1])
    x_scale = x_scale.repeat_interleave(groups // x_scale.shape[1], dim=1)
    weight_scale = weight_scale.float().repeat_interleave(groups // weight_scale.shape[1], dim=1)

    result = torch.zeros(x.shape[0], weight.shape[0], device=x.device)
    for index, part in enumerate(_sums_per_group(_centred(x, x_zero), weight, channels // groups)):
        result += part.mul_(weight_scale[:, index]).mul_(x_scale[:, index, None])
    return result


def _centred(q: Tensor, zero: Tensor) -> Tensor:
    """q - zero, float32 [M, K]."""
    return (q.float().unflatten(1, (zero.shape[1], -1)) - zero.unsqueeze(-1)).flatten(1)


def _sums_per_group(x: Tensor, weight: Tensor, group: int) -> Iterator[Tensor]:
    """Yield S[:, :, g] in float32, group by group; one at a time, as all of them would fill the memory."""
    for first in range(0, x.shape[1], group):
        yield x[:, first : first + group] @ weight[:, first : first + group].T
