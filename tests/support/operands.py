"""Operands of the linear operator for the tests of backends: weights, and activations that are hard to quantise."""

from __future__ import annotations

import torch

from quota.ops.interface import InputSpec, LinearSpec, LinearWeight
from quota.ops.packing import pack_int32

ROWS = {
    "random": torch.randn(6, 128, generator=torch.Generator().manual_seed(0)),
    "zeros": torch.zeros(2, 128),
    "constant rows": torch.tensor([[2.5], [-1e-3]]).repeat(1, 128),
    "one outlier": torch.randn(2, 128, generator=torch.Generator().manual_seed(1)).index_fill(1, torch.tensor(9), 1e4),
    "subnormal": torch.full((2, 128), 1e-40),
    "one token": torch.randn(1, 128, generator=torch.Generator().manual_seed(2)),
    "no token": torch.zeros(0, 128),
}


def make_weight(
    rows: int,
    columns: int,
    bits: int = 4,
    activation_bits: int = 4,
    group: int = 64,
    activation_group: int = 64,
    hadamard: int = 0,
    seed: int = 3,
) -> LinearWeight:
    """A random weight [rows, columns] with a bias; groups are cut down to powers of two that divide `columns`."""
    generator = torch.Generator().manual_seed(seed)
    divisor = columns & -columns
    limit = 2 ** (bits - 1)
    q = torch.randint(-limit, limit, (rows, columns), dtype=torch.int8, generator=generator)
    inputs = InputSpec(columns, activation_bits, min(activation_group, divisor), min(hadamard, divisor))
    width = min(group, divisor) if bits == 4 else columns
    step = torch.randint(1, 17 if bits == 4 else 2, (rows, columns // width), generator=generator, dtype=torch.uint8)
    scale = torch.randint(8, 16, (rows,), generator=generator) / 2**12
    return LinearWeight(
        LinearSpec(rows, bits, width, inputs), pack_int32(q, bits), step, scale, torch.randn(rows, generator=generator)
    )


def constant(outputs: int, columns: int, q: int, step: int, group: int, bits: int = 4) -> LinearWeight:
    """A weight [outputs, columns] of the same number everywhere, one scale and one step."""
    spec = LinearSpec(outputs, bits, group, InputSpec(columns, 4, min(group, columns & -columns), 0))
    packed = pack_int32(torch.full((outputs, columns), q, dtype=torch.int8), bits)
    steps = torch.full((outputs, columns // group), step, dtype=torch.uint8)
    return LinearWeight(spec, packed, steps, torch.ones(outputs), None)
