"""What is trained of the decoder: a low-rank addition to every linear layer,

    y = x W^T + x A^T B^T,

with W frozen in bfloat16, A [r, in] and B [out, r] in float32; B starts at zero. Layers that read the same input share
one product with A: q, k and v have a joint A of 3r rows, gate and up of 2r (`Shared`). Merged, W + B A is the layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = {
    "self_attn": (("q_proj", "k_proj", "v_proj"), ("o_proj",)),
    "mlp": (("gate_proj", "up_proj"), ("down_proj",)),
}


class LowRank(nn.Module):
    """A frozen linear layer without bias, and its addition of rank r."""

    frozen: Tensor

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.register_buffer("frozen", linear.weight.detach().bfloat16(), persistent=False)
        width = linear.in_features
        self.down = nn.Parameter(torch.randn(rank, width) * width**-0.5)
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        x = x.bfloat16()
        added = F.linear(F.linear(x, self.down.bfloat16()), self.up.bfloat16())
        return F.linear(x, self.frozen) + added


def attach(decoder: Any, rank: int) -> dict[str, LowRank]:
    """Put a `LowRank` in the place of every linear layer of a `LlamaModel`; they are returned by name."""
    found = {}
    for index, layer in enumerate(decoder.layers):
        for part, groups in GROUPS.items():
            for name in (name for group in groups for name in group):
                room = getattr(layer, part)
                adapted = LowRank(getattr(room, name), rank)
                setattr(room, name, adapted)
                found[f"layers.{index}.{part}.{name}"] = adapted
    return found


def merge(decoder: Any, tensors: dict[str, Tensor]) -> None:
    """Add what was trained, NAME.down [r, in] and NAME.up [out, r], to the linear layers of a plain `LlamaModel`."""
    with torch.no_grad():
        for name in sorted({key.rpartition(".")[0] for key in tensors}):
            weight = decoder.get_submodule(name).weight
            weight += (tensors[f"{name}.up"].float() @ tensors[f"{name}.down"].float()).to(weight.dtype)
