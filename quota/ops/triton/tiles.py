"""What several kernels do to a tile: rotate it, round it, take nibbles apart.

Divisions are `tl.div_rn` throughout: the plain one is not correctly rounded on a GPU, and quantised values would differ
from the reference's by one now and then.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from quota.ops.hadamard import hadamard_matrix

# The least side of an operand of `tl.dot`.
DOT = 16


@lru_cache(maxsize=32)
def rotation(block: int, device: torch.device) -> Tensor:
    """The matrix that `rotate` takes: blocks of Hadamard matrices along the diagonal, float32, at least [16, 16]."""
    with torch.inference_mode(False):
        block = max(block, 1)
        return torch.kron(
            torch.eye(max(1, DOT // block), dtype=torch.float32, device=device), hadamard_matrix(block, device)
        ).contiguous()


@triton.jit
def rotate(x, matrix, BLOCK: tl.constexpr, SIZE: tl.constexpr):
    """Rotate a flat float32 tile of SIZE channels in blocks of BLOCK; 0 and 1 leave it as it is.

    `matrix` points to `rotation(BLOCK)`. SIZE is at least 16 times its side.
    """
    if BLOCK > 1:
        SIDE: tl.constexpr = BLOCK if BLOCK > 16 else 16  # pyright: ignore[reportAssignmentType]
        line = tl.arange(0, SIDE)
        signs = tl.load(matrix + line[:, None] * SIDE + line[None, :])
        blocks = tl.reshape(x, (SIZE // SIDE, SIDE))
        x = tl.reshape(tl.dot(blocks, signs, input_precision="ieee") * (BLOCK**-0.5), (SIZE,))
    return x


@triton.jit
def round_half_even(x):
    """Nearest integer to x, |x| < 2^22, ties to even, still float32."""
    # Behind this sum no bits are left for a fraction; the addition rounds as IEEE asks.
    return (x + 12582912.0) - 12582912.0


@triton.jit
def is_finite(x):
    """NaN compares false to everything."""
    return tl.abs(x) < float("inf")


@triton.jit
def low_nibbles(byte):
    """Values of the even channels, uint8."""
    return byte & 0xF


@triton.jit
def high_nibbles(byte):
    """Values of the odd channels, uint8."""
    return byte >> 4


@triton.jit
def signed_nibble(nibble):
    """Weights are stored 8 up: 0 .. 15 to -8 .. 7, int8."""
    return (nibble.to(tl.int8) - 8).to(tl.int8)
