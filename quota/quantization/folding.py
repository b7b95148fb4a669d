"""Balancing transforms that cost nothing while a model runs, as they are folded into the weights around them.

A linear layer's input comes from somewhere, and where that is linear in its own weights M can be moved there:

    norm -> linears         w_norm <- w_norm d          W <- W / d               d a diagonal
    up -> down              W_up   <- d W_up            W_down <- W_down / d     (SwiGLU: down reads act(gate) * up)
    values -> output        W_v    <- M^T W_v           W_o <- W_o M^-T          M a matrix for each key head

d and M balance what enters a linear against its weights (quota/quantization/balance.py). M does so for the cached
values as well, and holds a rotation, R = H diag(signs): the cache quantises values as they come, and H spreads their
outliers. The signs keep R from being undone by the Hadamard rotation in front of the output projection.

The block computes what it did before, which `fold` checks. Names are those of Llama-like decoders and of CLIP-like
towers; a block with other names is left as it is, in whole or in part.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quota.errors import QuotaError
from quota.ops.hadamard import block_hadamard
from quota.quantization.balance import balance, balance_diagonal
from quota.ranks import ALONE, Ranks

TOLERANCE = 0.02
"""Relative change of a block's output that rounding to bfloat16 may make; a fold that is wrong makes far more."""

_NORMED = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    "layer_norm1": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "layer_norm2": ("mlp.fc1",),
    "norm1": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "norm2": ("mlp.fc1",),
}
_ATTENTION = ("self_attn", "attention")
_OUTPUTS = ("o_proj", "out_proj")


@dataclass(frozen=True)
class Readers:
    """Linears that read one tensor, and the module whose weights make it."""

    source: str
    linears: tuple[str, ...]


def readers(block: nn.Module, quantized: set[nn.Linear]) -> list[Readers]:
    """Where a diagonal can be folded in `block`: only in front of linears all of which are `quantized`."""
    found = [Readers(source, names) for source, names in _NORMED.items()]
    found.append(Readers("mlp.up_proj", ("mlp.down_proj",)))
    return [
        place
        for place in found
        if _scalable(_part(block, place.source)) and all(_part(block, name) in quantized for name in place.linears)
    ]


def fold(
    block: nn.Module,
    quantized: set[nn.Linear],
    run_each: Callable[[], Tensor],
    run_first: Callable[[], Tensor],
    cached: bool = False,
    ranks: Ranks = ALONE,
) -> None:
    """Fold balancing transforms into the weights of `block`, of which the linears in `quantized` are to be quantised.

    `run_each` runs it on every sample and gives the output for the first, `run_first` on the first alone; `cached` says
    that its values go to a quantised cache. What is learned is of all `ranks`. Raises QuotaError if the output changes:
    the block then is not what its names say.
    """
    places = readers(block, quantized)
    heads = _Heads.of(block, quantized, cached)
    energies = [_Energy() for _ in places]
    watched = [(_part(block, place.linears[0]), energy.add) for place, energy in zip(places, energies, strict=True)]
    if heads is not None:
        watched.append((heads.output, heads.add))
    with ExitStack() as hooks:
        for linear, add in watched:
            hooks.callback(linear.register_forward_pre_hook(add).remove)
        before = run_each()
    for place, energy in zip(places, energies, strict=True):
        if energy.total is not None:
            _fold_diagonal(block, place, ranks.total(energy.total).float())
    if heads is not None:
        heads.moment = ranks.total(heads.moment)
        heads.fold()
    change = float((run_first() - before).norm() / before.norm())
    if not change < TOLERANCE:
        raise QuotaError(
            f"{type(block).__name__} does not stand learned transforms (its output changed by {change:.1%}); "
            'use transforms="hadamard"'
        )


def _fold_diagonal(block: nn.Module, place: Readers, energy: Tensor) -> None:
    linears: list[nn.Linear] = [_part(block, name) for name in place.linears]
    weights = torch.stack([linear.weight.float().square().sum(dim=0) for linear in linears])
    scale = balance_diagonal(energy, weights.sum(dim=0))
    _scale_rows(_part(block, place.source), scale)
    for linear in linears:
        linear.weight.data = (linear.weight.float() / scale).to(linear.weight.dtype)


class _Energy:
    """Sum over tokens of the squares of what enters a linear, by channel; float64, whatever the order of samples."""

    total: Tensor | None = None

    def add(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        energy = args[0].float().flatten(0, -2).square().sum(dim=0).double()
        self.total = energy if self.total is None else self.total + energy


class _Heads:
    """Values and output projection of an attention module, and the second moment of what passes between them."""

    def __init__(self, values: nn.Linear, output: nn.Linear, width: int) -> None:
        self.values, self.output, self.width = values, output, width
        self.groups = values.out_features // width
        self.moment = torch.zeros(self.groups, width, width, dtype=torch.float64, device=values.weight.device)

    @classmethod
    def of(cls, block: nn.Module, quantized: set[nn.Linear], cached: bool) -> _Heads | None:
        """None if the block has no such parts, or nothing would gain."""
        attention = next((found for name in _ATTENTION if (found := _part(block, name)) is not None), block)
        values, width = _part(attention, "v_proj"), _part(attention, "head_dim")
        output = next((found for name in _OUTPUTS if isinstance(found := _part(attention, name), nn.Linear)), None)
        if not isinstance(values, nn.Linear) or output is None or not isinstance(width, int):
            return None
        gains = cached or output in quantized
        fits = values.out_features % width == 0 and output.in_features % values.out_features == 0
        return cls(values, output, width) if gains and fits else None

    def add(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        x = self._grouped(args[0].float().flatten(0, -2))
        self.moment += x.transpose(1, 2) @ x

    def fold(self) -> None:
        values, output = self.values, self.output
        weight = self._grouped(output.weight.float())
        matrix = balance(self.moment.float(), weight.transpose(1, 2) @ weight) @ _rotation(self.width, weight.device)
        inverse = torch.linalg.inv(matrix.double()).float()
        output.weight.data = self._side_by_side(weight @ inverse.transpose(1, 2)).to(output.weight.dtype)
        rows = values.weight.float().unflatten(0, (self.groups, -1))
        values.weight.data = (matrix.transpose(1, 2) @ rows).flatten(0, 1).to(values.weight.dtype)
        if values.bias is not None:
            bias = values.bias.float().view(self.groups, 1, -1) @ matrix
            values.bias.data = bias.flatten().to(values.bias.dtype)

    def _grouped(self, x: Tensor) -> Tensor:
        """[n, heads * width] -> [groups, n * heads / groups, width]: heads that read one key head are neighbours."""
        return x.unflatten(1, (self.groups, -1, self.width)).transpose(0, 1).flatten(1, 2)

    def _side_by_side(self, x: Tensor) -> Tensor:
        """`_grouped` undone."""
        heads = self.output.in_features // self.values.out_features
        return x.unflatten(1, (-1, heads)).transpose(0, 1).flatten(1)


def _rotation(width: int, device: torch.device) -> Tensor:
    """H diag(signs), orthonormal [width, width]; H in blocks if the width is no power of two."""
    signs = torch.randint(2, (width,), generator=torch.Generator().manual_seed(width)) * 2.0 - 1
    return block_hadamard(torch.eye(width), width & -width).to(device) * signs.to(device)


def _scale_rows(source: nn.Module, scale: Tensor) -> None:
    for parameter in (source.weight, getattr(source, "bias", None)):
        if isinstance(parameter, Tensor):
            shape = [-1] + [1] * (parameter.dim() - 1)
            parameter.data = (parameter.float() * scale.view(shape)).to(parameter.dtype)


def _scalable(source: nn.Module | None) -> bool:
    """Whether the output is in proportion to the weight (and the bias). It is not in norms that compute 1 + weight."""
    if isinstance(source, nn.Linear | nn.LayerNorm):
        return source.weight is not None
    weight = getattr(source, "weight", None)
    if not isinstance(source, nn.Module) or not isinstance(weight, Tensor) or weight.dim() != 1:
        return False
    with torch.no_grad():
        probe = torch.linspace(1, 2, weight.numel(), device=weight.device, dtype=weight.dtype).unsqueeze(0)
        once = source(probe)
        try:
            weight.data = weight.data * 2
            return torch.allclose(source(probe), once * 2, rtol=1e-2)
        finally:
            weight.data = weight.data / 2


def _part(block: nn.Module, name: str) -> Any:
    """The module called `name` inside `block`, None if there is none."""
    module: Any = block
    for part in name.split("."):
        module = getattr(module, part, None)
    return module
