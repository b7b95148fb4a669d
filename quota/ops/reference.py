"""The reference backend: the quantised linear operator in exact integer arithmetic, in plain torch.

    y[m, n] = sum_g  scale_x[m, g] * scale_w[n, g] * S[m, n, g]
    S[m, n, g] = sum_{k in g} (q_x[m, k] - zero[m, g]) * q_w[n, k]              an integer, exactly

Every other backend must produce the same S, to the last unit, and this one is what they are compared with.
S comes from float32 matrix products, which are far faster in torch than integer ones and exact here:
products are at most 255 * 128 in size, so a sum of up to 512 of them stays below 2^24, and float32 holds
every integer up to there, in whatever order the terms are added. `group_sums_naive` is the same in int32,
for the tests.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from quota.quantization.integer import unpack_int32


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


def linear(x: Tensor, x_scale: Tensor, x_zero: Tensor, packed: Tensor, weight_scale: Tensor, bits: int) -> Tensor:
    """The quantised linear operator, without bias: float32 [M, N].

    x uint8 [M, K], x_scale and x_zero [M, K / g] from `quantize_activation`; packed int32 [N, K * bits /
    32] from `pack_int32`; weight_scale [N, K / h]. Group sizes g and h are powers of two and may differ;
    the smaller one is the group of the sums. A row of the result does not depend on the other rows.
    """
    channels = x.shape[1]
    weight = unpack_int32(packed, bits, channels).float()
    groups = max(x_scale.shape[1], weight_scale.shape[1])
    centred = x.float().unflatten(1, (x_zero.shape[1], -1)) - x_zero.unsqueeze(-1)
    x_scale = x_scale.repeat_interleave(groups // x_scale.shape[1], dim=1)
    weight_scale = weight_scale.float().repeat_interleave(groups // weight_scale.shape[1], dim=1)

    result = torch.zeros(x.shape[0], weight.shape[0], device=x.device)
    for index, part in enumerate(_sums_per_group(centred.flatten(1), weight, channels // groups)):
        result += part.mul_(weight_scale[:, index]).mul_(x_scale[:, index, None])
    return result


def _sums_per_group(x: Tensor, weight: Tensor, group: int) -> Iterator[Tensor]:
    """Yield S[:, :, g] in float32, group by group; one at a time, as all of them would fill the memory."""
    for first in range(0, x.shape[1], group):
        yield x[:, first : first + group] @ weight[:, first : first + group].T
