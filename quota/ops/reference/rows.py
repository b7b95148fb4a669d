"""What stands between the linears of a block, row by row or number by number, in plain torch: the definitions.

    norm      x / sqrt(mean of x^2 + eps), in float32, and times the weight:
                  RMSNorm (Llama, Qwen)      w round(x / rms)             rounded to the type before and after
                  with an offset (Gemma)     round((1 + w) x / rms)
                  centred: LayerNorm         round(w (x - mean) / deviation + b)
    activate  silu x sigmoid(x); gelu x Phi(x); gelu_tanh its usual approximation; quick_gelu x sigmoid(1.702 x)
    gated     activate(gate) times up

They are those of transformers' modules, with every rounding to a half type that they make.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from quota.ops.interface import NormSpec

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


def norm(x: Tensor, weight: Tensor, bias: Tensor | None, spec: NormSpec) -> Tensor:
    """x [..., K], weight and bias [K], all of one type -> as x."""
    if spec.centred:
        return functional.layer_norm(x, weight.shape, weight, bias, spec.eps)
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + spec.eps)
    return (normed * (1.0 + weight.float())).to(x.dtype) if spec.offset else weight * normed.to(x.dtype)


def activate(x: Tensor, activation: str) -> Tensor:
    """x of any shape -> as x."""
    return _ACTIVATIONS[activation](x)


def gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """gate and up of one shape -> as gate."""
    return activate(gate, activation) * up
