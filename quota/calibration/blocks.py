"""Run single blocks of a model on stored inputs, and quantise a block from what its linear layers see.

Calibration needs what enters every block for every sample, but must not run the model from its start for each of
them, nor hold the activations of more than one block. These moves do it:

    capture           run the model's own code up to a chain of blocks; keep what enters and what comes beside it
    run, run_all      run one block alone, on one sample, on all; `put` stores what comes out
    quantize_linears  replace the linear layers of a block, each from inputs that the replaced ones before it made

The model's own forward pass decides what a block is called with (masks, rotary tables), so a chain of blocks run one
by one gives exactly what the whole model gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quota.calibration.moments import Moments
from quota.errors import QuotaError
from quota.quantization.linear import W4A4Linear
from quota.ranks import ALONE, Ranks
from quota.scheme import QuantizationScheme


class Reached(Exception):
    """The forward pass has come as far as it was wanted."""


@dataclass(frozen=True)
class Beside:
    """What a block is called with for one sample, besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    added: Tensor | None = None
    """What the model adds to its output before the next block of the chain takes it (DeepStack); None is nothing."""


def capture(model: nn.Module, blocks: Sequence[nn.Module], inputs: Mapping[str, Any]) -> tuple[Tensor, list[Beside]]:
    """Run the model on `inputs` until `blocks`, a chain in calling order, would start.

    Returns what enters the first block [B, L, D], and what every block is called with besides hidden states. The
    blocks themselves do not run.
    """
    entering: list[Tensor] = []
    beside: list[Beside] = []
    nothing: Tensor | None = None

    def record(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal nothing
        if not entering:
            entering.append(hidden)
        elif hidden is not nothing:
            # The block before gave zeros: what comes in is what was added on the way.
            beside[-1] = replace(beside[-1], added=hidden)
        beside.append(Beside(args, kwargs))
        if len(beside) == len(blocks):
            raise Reached
        nothing = torch.zeros_like(hidden)
        return nothing

    with ExitStack() as replaced, suppress(Reached):
        for block in blocks:
            replaced.enter_context(forward_is(block, record))
        model(**inputs, use_cache=False)
    return entering[0], beside


def run(block: nn.Module, hidden: Tensor, beside: Beside, **replaced: Any) -> Tensor:
    """One block on one sample: hidden states [B, L, D] -> [B, L, D]; `replaced` overrides its keyword arguments."""
    output = block(hidden, *beside.args, **{**beside.kwargs, **replaced})
    output = output[0] if isinstance(output, tuple) else output
    return output if beside.added is None else output + beside.added


def run_all(advance: Callable[[int], Tensor], samples: int, store: list[Tensor] | None = None) -> Tensor:
    """`advance` for each of at least one sample, and what it gave for the first; `store` takes up all, one by one."""
    first = leaving = advance(0)
    for sample in range(samples):
        if sample:
            leaving = advance(sample)
        if store is not None:
            put(store, sample, leaving)
    return first


def put(store: list[Tensor], sample: int, hidden: Tensor) -> None:
    """Replace the hidden states of one sample, in the memory of the old ones: new memory for each leaves holes."""
    if hidden.shape == store[sample].shape and hidden.dtype == store[sample].dtype:
        store[sample].copy_(hidden)
    else:
        store[sample] = hidden


def quantize_linears(
    model: nn.Module,
    linears: Mapping[str, nn.Linear],
    scheme: QuantizationScheme,
    run_sample: Callable[[int], object],
    samples: int,
    ranks: Ranks = ALONE,
    run_exact: Callable[[int], object] | None = None,
) -> None:
    """Replace `linears` (all in one block, by their names in the model) by quantised ones, in calling order.

    `run_sample(i)` runs the block on sample i as it is by then; `run_exact(i)` on what enters it in full precision,
    with `linears` themselves in their places, and is needed where weights are corrected. Layers that read the same
    tensor (queries, keys and values; gate and up) share their moments, which are those of the samples of all `ranks`.
    Raises QuotaError for a linear that no sample reaches.
    """
    stages = shared_inputs(linears, lambda: run_sample(0))
    if unreached := set(linears) - {name for stage in stages for name in stage}:
        raise QuotaError(f"calibration never reaches {min(unreached)}; leave its part out of scheme.modules")
    for stage in stages:
        first = linears[stage[0]]
        hessian = correction = None
        if scheme.weight_rounding != "rtn":
            moments = Moments(first.in_features, scheme, first.weight.device)
            for sample in range(samples):
                seen = entering(first, partial(run_sample, sample))
                meant = None
                if moments.corrects:
                    assert run_exact is not None
                    with in_place(model, linears):
                        meant = entering(first, partial(run_exact, sample))
                moments.add(seen, meant)
            hessian, correction = moments.of_all(ranks)
        for name in stage:
            model.set_submodule(name, W4A4Linear.from_linear(linears[name], scheme, hessian, correction))


def shared_inputs(linears: Mapping[str, nn.Linear], run_once: Callable[[], object]) -> list[list[str]]:
    """Names of the linears in calling order, those that read the very same tensor together."""
    stages: list[list[str]] = []
    source: Tensor | None = None

    def reached(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            nonlocal source
            if args[0] is source:
                stages[-1].append(name)
            else:
                stages.append([name])
                source = args[0]

        return hook

    with ExitStack() as hooks:
        for name, linear in linears.items():
            hooks.callback(linear.register_forward_pre_hook(reached(name)).remove)
        run_once()
    return stages


def entering(linear: nn.Linear, run_once: Callable[[], object]) -> Tensor:
    """What enters `linear` [..., K] when `run_once` comes to it, and no further."""
    reached: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
        reached.append(args[0])
        raise Reached

    hook = linear.register_forward_pre_hook(keep)
    try:
        with suppress(Reached):
            run_once()
    finally:
        hook.remove()
    return reached[0]


@contextmanager
def in_place(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """`modules` stand in `model` by their names inside the block."""
    before = {name: model.get_submodule(name) for name in modules}
    try:
        for name, module in modules.items():
            model.set_submodule(name, module)
        yield
    finally:
        for name, module in before.items():
            model.set_submodule(name, module)


@contextmanager
def forward_is(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """`module` computes `forward` inside the block; its hooks stay around it."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
