"""Muon for many small matrices: those of one shape are orthogonalised together.

A matrix's step is its momentum, made nearly orthogonal by five rounds of a quintic Newton-Schulz iteration (Keller
Jordan, "Muon", 2024), times sqrt(max(1, rows / columns)). It is what `torch.optim.Muon` does with one matrix at a time,
which for the 420 of an adapter takes longer than the decoder.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_QUINTIC = (3.4445, -4.775, 2.0315)
_ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """Parameters [rows, columns]; Nesterov momentum, decoupled weight decay."""

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, weight_decay: float = 0.1, momentum: float = 0.95
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override] (nobody here gives a closure)
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            for alike in shapes.values():
                self._step(alike, **{name: group[name] for name in ("lr", "weight_decay", "momentum")})

    def _step(self, alike: list[Tensor], lr: float, weight_decay: float, momentum: float) -> None:
        ahead = []
        for parameter in alike:
            if (gradient := parameter.grad) is not None:
                ahead.append(gradient.lerp(self._momentum(parameter).lerp_(gradient, 1 - momentum), momentum))
        rows, columns = alike[0].shape
        for parameter, update in zip(alike, orthogonalise(torch.stack(ahead)), strict=True):
            parameter.mul_(1 - lr * weight_decay).add_(update, alpha=-lr * max(1.0, rows / columns) ** 0.5)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def orthogonalise(matrices: Tensor) -> Tensor:
    """[N, rows, columns] -> as many in bfloat16, all of whose singular values are near 1."""
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    one, three, five = _QUINTIC
    for _ in range(_ROUNDS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=three, alpha=five), x, beta=one)
    return x.mT if tall else x
