"""The projector while it is trained: features are standardised first, which is folded into its first layer later.

With the mean m and deviation s of every channel of the tower, y = W2 gelu(W1 (x - m) / s + b1) + b2. The stock
projector has W1 / s for a weight and b1 - W1 m / s for a bias.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Projector(nn.Module):
    """[..., tower width] -> [..., decoder width]."""

    def __init__(self, tower_width: int, width: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(tower_width), requires_grad=False)
        self.deviation = nn.Parameter(torch.ones(tower_width), requires_grad=False)
        self.linear_1 = nn.Linear(tower_width, width)
        self.linear_2 = nn.Linear(width, width)

    def standardise(self, features: Tensor) -> None:
        """Take mean and deviation of every channel of `features` [..., tower width]."""
        flat = features.flatten(0, -2).float()
        self.mean.data.copy_(flat.mean(0))
        self.deviation.data.copy_(flat.std(0))

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1((features.float() - self.mean) / self.deviation)))

    def folded(self) -> dict[str, Tensor]:
        """The stock projector's tensors."""
        weight = self.linear_1.weight / self.deviation
        return {
            "linear_1.weight": weight,
            "linear_1.bias": self.linear_1.bias - weight @ self.mean,
            "linear_2.weight": self.linear_2.weight,
            "linear_2.bias": self.linear_2.bias,
        }
