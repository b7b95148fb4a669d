"""Norms, activations and gates on the CPU: one pass over memory each, where torch takes several."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quota.ops.cpu.library import address, run, typed
from quota.ops.interface import ACTIVATIONS, NormSpec


def norm(x: Tensor, weight: Tensor, bias: Tensor | None, spec: NormSpec) -> Tensor:
    """x [..., K], weight and bias [K], all of one type -> as x."""
    x = x.contiguous()
    y, (*rows, columns) = torch.empty_like(x), x.shape
    run(
        "quota_norm",
        *typed("rows", x, x.shape),
        *(math.prod(rows), columns),
        address("the norm's weight", weight, (columns,), x.dtype),
        None if bias is None else address("the norm's bias", bias, (columns,), x.dtype),
        *(spec.eps, spec.centred, spec.offset, y.data_ptr()),
        work="normalised rows",
    )
    return y


def activate(x: Tensor, activation: str) -> Tensor:
    """x of any shape -> as x."""
    x = x.contiguous()
    y = torch.empty_like(x)
    function = ACTIVATIONS.index(activation)
    run("quota_activate", *typed("x", x, x.shape), x.numel(), function, y.data_ptr(), work="activations")
    return y


def gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """gate and up of one shape and type -> as gate."""
    gate, up = gate.contiguous(), up.contiguous()
    y = torch.empty_like(gate)
    run(
        "quota_gated",
        *typed("the gate", gate, gate.shape),
        address("what is gated", up, gate.shape, gate.dtype),
        *(gate.numel(), ACTIVATIONS.index(activation), y.data_ptr()),
        work="gated activations",
    )
    return y
