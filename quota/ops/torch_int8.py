"""The "torch" backend: integer matrix products by `torch._int_mm`, on weights unpacked to int8.

    S_g    = X_g W_g^T                              one product a group of channels, int32, exact
    y     += scale_x[:, g] * scale_w[:, g] * S_g    group by group, in order

X_g is q - zero, which 4 bits keep within int8. With 8 bits it is q - 128 instead, and the rest is added afterwards:
S_g += (128 - zero) * (sum of W_g over the group). Scales differ from group to group, so one product over all channels
would not do, and torch has no batched one.

It needs no compiler and no GPU, and pays with memory: a byte a weight, in place of half of one. Tiles of rows keep the
sums in the cache between the product and the scaling. All other jobs are those of the reference.

Processors without VNNI add pairs of products in 16 bits, which overflow with 8-bit numbers. `lacks` finds that out by
multiplying the largest ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from quota.ops.hadamard import block_hadamard
from quota.ops.integer import quantize_activation, unpack_int32
from quota.ops.interface import LinearSpec, LinearWeight
from quota.ops.reference.plain import PlainTorch

# What CUDA's `_int_mm` wants: K and N multiples of 8, M above 16. Weights are padded alike on every device.
_MULTIPLE = 8
_ROWS = {"cuda": 32}

# Sums in a tile: 1 MiB stays in a core's second-level cache, while a GPU wants large products.
_TILE = {"cuda": 1 << 26}
_CPU_TILE = 1 << 18


class TorchBackend(PlainTorch):
    """`torch._int_mm` on int8 weights; runs wherever torch does."""

    name = "torch"

    def lacks(self, spec: LinearSpec) -> str | None:
        bits = spec.weight_bits, spec.activation_bits
        if not set(bits) <= {4, 8}:
            return "it multiplies integers of 4 and 8 bits only"
        if not _products_are_exact(*bits):
            return "int8 products overflow on this processor, which lacks VNNI instructions"
        return None

    def linear(self, x: Tensor, weight: LinearWeight) -> Tensor:
        """x [M, K] -> [M, N] in the same type; QuotaError for NaN or infinity."""
        spec = weight.spec
        rotated = block_hadamard(x.float(), spec.hadamard)
        q, x_scale, zero = quantize_activation(rotated, spec.activation_bits, spec.activation_group)
        prepared = _prepared(weight)
        x_scale = _per_group(x_scale, len(prepared.q)).unsqueeze(-1)

        result = x_scale.new_zeros(len(q), prepared.q.shape[1])
        scaled = None
        for group, rows, sums in _group_sums(q, zero, spec.activation_bits, prepared):
            # One buffer for all groups: fresh memory would cost more than the product.
            scaled = torch.empty_like(sums, dtype=torch.float32) if scaled is None else scaled
            part = scaled[: len(sums)].copy_(sums).mul_(prepared.scale[group])
            result[rows].addcmul_(part, x_scale[group, rows])
        result = result[:, : spec.rows]
        if weight.bias is not None:
            result = result + weight.bias
        return result.to(x.dtype, copy=False).contiguous()

    def group_sums(self, q: Tensor, zero: Tensor, packed: Tensor, bits: int, group: int) -> Tensor:
        """S of q uint8 [M, K], zero int32 [M, K / group] and packed weights: int32 [M, N, K / group]."""
        weight = unpack_int32(packed, bits, q.shape[1])
        prepared = _prepare(weight, torch.ones(len(weight), q.shape[1] // group, device=q.device))
        result = zero.new_empty(len(prepared.q), len(q), len(weight))
        activation_bits = 8 if bool((q > 15).any() or (zero > 15).any()) else 4
        for index, rows, sums in _group_sums(q, zero, activation_bits, prepared):
            result[index, rows] = sums[:, : len(weight)]
        return result.permute(1, 2, 0)


@dataclass(frozen=True)
class _Prepared:
    """A weight, group by group; N and g are padded with zeros to multiples of 8."""

    q: Tensor
    """int8 [groups, N, g]."""
    scale: Tensor
    """float32 [groups, N]."""
    sums: Tensor
    """int32 [groups, N], q summed over g."""


def _prepared(weight: LinearWeight) -> _Prepared:
    """What is kept for `weight`, made at its first use."""
    found = weight.prepared.get(TorchBackend.name)
    if found is None:
        spec = weight.spec
        groups = max(spec.columns // spec.activation_group, weight.scale.shape[1])
        q = unpack_int32(weight.packed, spec.weight_bits, spec.columns)
        found = _prepare(q, _per_group(weight.scale.float(), groups).T)
        weight.prepared[TorchBackend.name] = found
    return found


def _prepare(q: Tensor, scale: Tensor) -> _Prepared:
    """q int8 [N, K] and scale [N, groups], a scale for every group of the sums."""
    groups = q.unflatten(1, (scale.shape[1], -1))
    padding = (0, -groups.shape[2] % _MULTIPLE, 0, 0, 0, -len(q) % _MULTIPLE)
    groups = functional.pad(groups, padding).transpose(0, 1).contiguous()
    scale = functional.pad(scale.T, (0, padding[-1])).contiguous()
    return _Prepared(groups, scale, groups.sum(-1, dtype=torch.int32))


def _group_sums(q: Tensor, zero: Tensor, bits: int, weight: _Prepared) -> Iterator[tuple[int, slice, Tensor]]:
    """Yield (g, rows, S[rows, :, g]) for q uint8 [M, K] of `bits` bits: int32 [rows, N], to be used at once.

    The memory of the sums is that of the next ones. Rows come tile by tile, and the groups of a tile in order.
    """
    groups, outputs, width = weight.q.shape
    zero = _per_group(zero, groups).unsqueeze(-1)
    parts = q.unflatten(1, (groups, -1)).transpose(0, 1)
    # 8 bits: q - 128 is q with its top bit flipped, read as a signed number.
    x = (parts ^ 0x80).view(torch.int8) if bits == 8 else (parts.to(torch.int8) - zero.to(torch.int8))
    least = _ROWS.get(q.device.type, 1)
    x = functional.pad(x, (0, width - x.shape[2], 0, -len(q) % least)).contiguous()

    step = max(least, 16, _TILE.get(q.device.type, _CPU_TILE) // max(1, outputs) // least * least)
    sums = torch.empty(min(step, x.shape[1]), outputs, dtype=torch.int32, device=q.device)
    for start in range(0, len(q), step):
        rows = slice(start, min(start + step, len(q)))
        operand = x[:, start : start + step]
        for group in range(groups):
            part = sums[: operand.shape[1]]
            torch._int_mm(operand[group], weight.q[group].T, out=part)  # pyright: ignore[reportPrivateImportUsage]
            part = part[: rows.stop - start]
            if bits == 8:
                part.addcmul_(128 - zero[group, rows], weight.sums[group])
            yield group, rows, part


def _per_group(values: Tensor, groups: int) -> Tensor:
    """[M, coarser groups] -> [groups, M]."""
    return values.T.repeat_interleave(groups // values.shape[1], dim=0)


@lru_cache
def _products_are_exact(weight_bits: int, activation_bits: int) -> bool:
    """Whether this machine multiplies the largest operands of these widths without overflow.

    Tried in the main memory: GPUs have no such limit.
    """
    widest = {4: (-15, 15), 8: (-128, 127)}[activation_bits]
    largest = -(2 ** (weight_bits - 1)), 2 ** (weight_bits - 1) - 1
    x, weight = (
        torch.tensor(ends, dtype=torch.int8, device="cpu").repeat_interleave(16)[:, None].repeat(1, 64)
        for ends in (widest, largest)
    )
    products = torch._int_mm(x, weight.T)  # pyright: ignore[reportPrivateImportUsage]
    return torch.equal(products, x.int() @ weight.int().T)
