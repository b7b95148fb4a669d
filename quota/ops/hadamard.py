"""Block Walsh-Hadamard rotation: spreads an outlier channel over its block before 4-bit quantisation.

A linear layer y = x W^T is unchanged when both x and W are rotated along the input channels by an
orthonormal H, since (x H)(W H)^T = x H H^T W^T. Quantising x H in place of x costs far less accuracy,
because one channel of magnitude 100 becomes 64 channels of magnitude 12. The rotation is Sylvester's matrix
of order `block`, repeated along the diagonal and divided by sqrt(block); it is symmetric, so it is its own
inverse. Order and scaling are those of the "hadamard" transform of compressed-tensors.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=32)
def hadamard_matrix(order: int, device: torch.device) -> Tensor:
    """Sylvester's matrix [order, order] of +1 and -1, float32, not normalised; `order` a power of two."""
    # A cached tensor must not be an inference tensor, or the first caller would decide for all.
    with torch.inference_mode(False):
        matrix = torch.ones(1, 1, dtype=torch.float32, device=device)
        while matrix.shape[0] < order:
            top = torch.cat((matrix, matrix), dim=1)
            bottom = torch.cat((matrix, -matrix), dim=1)
            matrix = torch.cat((top, bottom))
    return matrix


def block_hadamard(x: Tensor, block: int) -> Tensor:
    """Rotate the last dimension of `x` [..., K] in blocks of `block` channels; same shape and dtype.

    `block` is a power of two that divides K; 0 and 1 leave x as it is. One small matrix product: with 64
    channels that is faster in torch than the six passes of the fast transform, which matter to kernels only.
    """
    if block <= 1:
        return x
    blocks = x.reshape(-1, block).float()
    with torch.autocast(x.device.type, enabled=False):
        rotated = blocks @ hadamard_matrix(block, x.device)
    return rotated.mul_(block**-0.5).reshape(x.shape).to(x.dtype)


def block_hadamard_naive(x: Tensor, block: int) -> Tensor:
    """The same from the recursion H_2n = [[H_n, H_n], [H_n, -H_n]], one pair of channels at a time."""
    if block <= 1:
        return x
    y = x.float().clone()
    span = 1
    while span < block:
        for first in range(x.shape[-1]):
            if first & span == 0:
                a, b = y[..., first].clone(), y[..., first + span].clone()
                y[..., first], y[..., first + span] = a + b, a - b
        span *= 2
    return (y * block**-0.5).to(x.dtype)
