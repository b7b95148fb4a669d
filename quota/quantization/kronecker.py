"""A matrix in front of a linear layer, small enough to stay online: the Kronecker product of two (FlatQuant).

The K = n1 n2 inputs of a token are read as a matrix X [n1, n2], a row of W likewise, and

    X' = L^T X R              W' = L^-1 W R^-T              tr(W'^T X') = tr(W^T X)

so the layer gives what it gave, while what is quantised has the shape that L and R give it. X' costs n1 + n2 products
a channel. n2 is the block of the scheme's rotation, which R replaces. Then the ends of every group g of the activation
quantiser are cut,

    X'' = min(max(X', c min_g X'), c max_g X')              c in (0, 1]

and with them its range: that is clipping, done in front of the operator. (Sun et al., FlatQuant, arXiv 2410.09426,
equations 2 and 3 and "learnable clipping thresholds".) quota/quantization/training.py finds L, R and c; at first L is
the identity, R Hadamard's matrix, and c = 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quota.ops.hadamard import hadamard_matrix
from quota.scheme import QuantizationScheme


class Kronecker(nn.Module):
    """L [n1, n1], R [n2, n2] and c [1]: buffers `left`, `right` and `clip`, float32."""

    left: Tensor
    right: Tensor
    clip: Tensor

    def __init__(self, features: int, scheme: QuantizationScheme, device: torch.device | str | None = None) -> None:
        """The block Hadamard rotation of `scheme` for K = `features`, for loaders and training to fill."""
        super().__init__()
        self.group = scheme.activation_group_for(features)
        n2 = max(1, scheme.hadamard_for(features))
        left = torch.eye(features // n2, device=device)
        self.register_buffer("left", left)
        self.register_buffer("right", hadamard_matrix(n2, left.device) * n2**-0.5)
        self.register_buffer("clip", torch.ones(1, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """X'' of x [..., K], float32."""
        return clip_groups(self.turn(x), self.clip.float(), self.group)

    def turn(self, x: Tensor) -> Tensor:
        """X' of x [..., K], float32."""
        return turn(x, self.left.float(), self.right.float())

    def turn_weight(self, weight: Tensor) -> Tensor:
        """W' of a weight [N, K], float32."""
        return turn(weight, _inverse(self.left).T, _inverse(self.right).T)


def turn(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """L^T X R of x [..., n1 n2], float32."""
    with torch.autocast(x.device.type, enabled=False):
        mixed = x.float().reshape(-1, len(right)) @ right
        return (left.T @ mixed.view(-1, len(left), len(right))).view(x.shape)


def turn_naive(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The same by the whole matrix, x (L kron R)."""
    return x.float() @ torch.kron(left, right)


def clip_groups(x: Tensor, clip: Tensor, group: int) -> Tensor:
    """x [..., K], each group of channels cut to the share `clip` of what it reaches on either side of zero."""
    groups = x.unflatten(-1, (-1, group))
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    return groups.clamp(low * clip, high * clip).flatten(-2)


def _inverse(factor: Tensor) -> Tensor:
    return torch.linalg.inv(factor.double()).float()
