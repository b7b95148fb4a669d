"""Norms, activations and gated products of a model, run by the operators of job "rows".

Which modules those are is found by what they compute. Each is probed on a few numbers, in every float type, and is
replaced if what it computes is what an operator computes:

    norm        a weight for each channel, and nothing else but a bias        (RMSNorm, with 1 + weight, LayerNorm)
    gated MLP   down_proj(activation(gate_proj(x)) * up_proj(x))              probed between its linears
    activation  a module without weights                                      (SiLU, GELU and their like)

What has such parts and computes something else keeps torch's code, and every report of what ran names its class.

Only the `forward` of an instance is replaced: hooks stay around it, names of tensors and copies are what they were, and
weights are read when they are used. A module that trains, or runs under autocast, runs its own code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from quota import ops
from quota.ops.interface import ACTIVATIONS, NormSpec
from quota.ops.reference import rows as definition

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""How far results may lie from a definition: what is computed in another order is rounded in other places."""

Compute = Callable[[Any, Tensor], Tensor]
"""(a module as it is by then, what it is called with) -> what its own code would give."""

_LINEARS = ("gate_proj", "up_proj", "down_proj")
_PROBED = (2, 5)
"""Samples and tokens of a probe: a module that mixes them differs from all definitions."""


class RowOperators:
    """The modules of one model that are run by operators, until `detach`."""

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self.replaced: list[_Replaced] = []
        self.unknown: set[str] = set()
        """Classes of modules that no operator is known for."""

    def attach(self) -> Self:
        """Take effect, in place of those attached earlier."""
        if isinstance(earlier := getattr(self.model, "quota_rows", None), RowOperators):
            earlier.detach()
        for module, compute in _find(self.model):
            if compute is None:
                self.unknown.add(type(module).__name__)
            self.replaced.append(_Replaced(module, compute))
        for each in self.replaced:
            each.module.forward = each
        self.model.quota_rows = self
        return self

    def detach(self) -> None:
        """Leave the model as it was."""
        for each in self.replaced:
            del each.module.forward
        self.replaced = []
        if getattr(self.model, "quota_rows", None) is self:
            del self.model.quota_rows


def attach_rows(model: nn.Module) -> RowOperators:
    """Run norms, activations and gated products of `model` by operators, until `.detach()`."""
    return RowOperators(model).attach()


@dataclass(eq=False)
class _Replaced:
    """The `forward` of one module, in place of its own."""

    module: Any
    compute: Compute | None
    """None if no operator is known."""

    def __call__(self, *given: Any, **named: Any) -> Any:
        if self.compute is None:
            ops.lack(f"rows: {type(self.module).__name__} is none that is known")
        elif len(given) == 1 and not named and self._deployed(given[0]):
            with torch.no_grad() if torch.is_grad_enabled() else nullcontext():
                return self.compute(self.module, given[0])
        return type(self.module).forward(self.module, *given, **named)

    def _deployed(self, x: Tensor) -> bool:
        if self.module.training or x.dtype not in TOLERANCE or torch.is_autocast_enabled(x.device.type):
            return False
        return all(weight is None or weight.dtype == x.dtype for weight in self.module._parameters.values())


def _norm(spec: NormSpec, module: Any, x: Tensor) -> Tensor:
    return ops.for_rows(x.device).norm(x, module.weight, getattr(module, "bias", None), spec)


def _activate(activation: str, module: Any, x: Tensor) -> Tensor:
    return ops.for_rows(x.device).activate(x, activation)


def _gated(activation: str, module: Any, x: Tensor) -> Tensor:
    if any(part._forward_hooks or part._forward_pre_hooks for part in _others(module)):
        # They wait for the activation, which would not be called.
        return type(module).forward(module, x)
    gate, up = module.gate_proj(x), module.up_proj(x)
    return module.down_proj(ops.for_rows(x.device).gated(gate, up, activation))


def _others(module: nn.Module) -> list[nn.Module]:
    """What a gated MLP has besides its linears."""
    return [part for name, part in module._modules.items() if name not in _LINEARS and part is not None]


def _find(model: nn.Module) -> Iterator[tuple[nn.Module, Compute | None]]:
    """Modules between linears, and what computes the same; None if nothing does."""
    inside: set[nn.Module] = set()
    for module in model.modules():
        if module in inside or "forward" in module.__dict__:
            continue
        if all(isinstance(getattr(module, name, None), nn.Module) for name in _LINEARS):
            compute = _as_gated(module)
            inside.update(module.modules() if compute is not None else ())
            yield module, compute
        elif module._modules or module._buffers:
            continue
        elif module._parameters:
            weight = module._parameters.get("weight")
            if weight is not None and weight.ndim == 1:
                yield module, _as_norm(module, len(weight))
        elif _changes_numbers(module):
            yield module, _as_activation(module)


def _as_norm(module: nn.Module, channels: int) -> Compute | None:
    given = {name for name, parameter in module._parameters.items() if parameter is not None}
    if not given <= {"weight", "bias"}:
        return None
    # Tokens with a mean, large ones, and those in which eps counts.
    scale, shift = torch.tensor([[1, 1, 30, 1e-3, 1e-2], [0, 1, -3, 0, 0]])[:, :, None]
    x, weight, bias = _numbers(*_PROBED, channels) * scale + shift, _numbers(channels), _numbers(channels)

    def theirs(x: Tensor, weight: Tensor, bias: Tensor) -> Any:
        drawn = {"weight": weight, "bias": bias if "bias" in given else None}
        return _run(module, x, _parameters={**module._parameters, **drawn})

    def ours(spec: NormSpec, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return definition.norm(x, weight, bias if "bias" in given else None, spec)

    variants = [{"centred": True}] if "bias" in given else [{}, {"offset": True}, {"centred": True}]
    held = [value for value in vars(module).values() if isinstance(value, float)]
    specs = [NormSpec(eps, **variant) for eps in held for variant in variants]
    return _recognised(theirs, ours, specs, (x, weight, bias), _norm)


def _as_activation(module: nn.Module) -> Compute | None:
    def theirs(x: Tensor) -> Any:
        return _run(module, x)

    def ours(activation: str, x: Tensor) -> Tensor:
        return definition.activate(x, activation)

    return _recognised(theirs, ours, ACTIVATIONS, (_spread(),), _activate)


def _as_gated(module: nn.Module) -> Compute | None:
    def theirs(x: Tensor, gate: Tensor, up: Tensor) -> Any:
        told = dict(zip(_LINEARS, (_Told(x, gate), _Told(x, up), nn.Identity()), strict=True))
        silent = {name: part and _twin(part) for name, part in module._modules.items()}
        return _run(module, x, _modules={**silent, **told})

    def ours(activation: str, x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
        return definition.gated(gate, up, activation)

    probes = _numbers(*_spread().shape), _spread(), _numbers(*_spread().shape)
    return _recognised(theirs, ours, ACTIVATIONS, probes, _gated)


class _Told(nn.Module):
    """In place of a linear: gives `output` for `x`, and nothing for anything else."""

    def __init__(self, x: Tensor, output: Tensor) -> None:
        super().__init__()
        self.x, self.output = x, output

    def forward(self, x: Tensor) -> Tensor | None:
        return self.output if torch.equal(x, self.x) else None


@torch.no_grad()
def _recognised(
    theirs: Callable[..., Any],
    ours: Callable[..., Tensor],
    candidates: Sequence[Any],
    probes: Sequence[Tensor],
    compute: Callable[[Any, Any, Tensor], Tensor],
) -> Compute | None:
    """`compute` of the first candidate for which `ours` is what `theirs` gives for the probes, in every type."""
    typed = [[probe.to(dtype) for probe in probes] for dtype in TOLERANCE]
    expected = [theirs(*each) for each in typed]
    for candidate in candidates:
        found = [ours(candidate, *each) for each in typed]
        if all(map(_same, expected, found)):
            return partial(compute, candidate)
    return None


def _same(one: Any, other: Tensor) -> bool:
    if not isinstance(one, Tensor) or one.shape != other.shape or one.dtype != other.dtype:
        return False
    tolerance = TOLERANCE[other.dtype]
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def _changes_numbers(module: nn.Module) -> bool:
    """Whether it makes other numbers of numbers, one of each."""
    x = _spread()
    y = _run(module, x)
    return isinstance(y, Tensor) and y.shape == x.shape and not torch.equal(x, y)


def _run(module: nn.Module, x: Tensor, **changes: Mapping[str, Any]) -> Any:
    """What the code of `module`, with other parameters or modules, makes of `x`; None if it cannot."""
    try:
        return type(module).forward(_twin(module, **changes), x)
    except Exception:  # Foreign code, asked for what it may not be made for.
        return None


def _twin(module: nn.Module, **changes: Mapping[str, Any]) -> nn.Module:
    """Shares all that `module` has but for `changes` and its hooks: nobody notices when it runs."""
    twin = copy.copy(module)
    twin.__dict__ |= {"training": False, "_forward_hooks": {}, "_forward_pre_hooks": {}, **changes}
    return twin


def _numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), device="cpu")


def _spread() -> Tensor:
    """Numbers between which activations differ."""
    return torch.linspace(-8, 8, 160, device="cpu").view(*_PROBED, -1)
