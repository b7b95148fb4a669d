"""Where the seconds of a prefill and of a decoding step go, by part: what explains the figures of `quota bench e2e`.

A part's seconds are those spent in it and not in a part inside it: attention is an attention module less its
linears and its cache. What no part claims, residuals and masks above all, is "other".
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any, Literal

import torch
from torch import nn
from transformers.cache_utils import DynamicLayer

from quota.attention.slots import SlotLayer
from quota.models import family
from quota.pruning.pruner import Pruner
from quota.quantization.embedding import QuantizedEmbedding, TiedHead
from quota.quantization.linear import W4A4Linear
from quota_lab.bench.models import Subject

STEPS = 8
"""Decoding steps a turn."""
_OTHER = "other"
_HOOKS = ("_before_base", "_before_decoder", "_before_layer", "_after_layer", "_after_decoder")


class Clock:
    """Seconds by part, each without the parts inside it."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    def enter(self, part: str) -> None:
        """From here on seconds are `part`'s."""
        self._take()
        self._open.append(part)

    def leave(self) -> None:
        """And from here on again those of the part around it."""
        self._take()
        self._open.pop()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Inside the block seconds are those of the part `name`."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def _take(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


def profile(subject: Subject, pruned: bool, turns: int) -> dict[Literal["prefill", "step"], dict[str, float]]:
    """ "prefill" and "step" -> part -> seconds, medians over `turns` after one that does not count."""
    clock = Clock()
    found: dict[Literal["prefill", "step"], list[dict[str, float]]] = {"prefill": [], "step": []}
    with ExitStack() as stack, torch.inference_mode():
        stack.enter_context(_watched(subject.model, clock))
        if pruned:
            stack.enter_context(_pruner(subject, clock))
        for _ in range(turns + 1):
            inputs = dict(subject.inputs)
            output = None
            for job, turn in found.items():
                count = 1 if job == "prefill" else STEPS
                clock.seconds.clear()
                for _ in range(count):
                    with clock.part(_OTHER):
                        output = subject.model(**inputs, use_cache=True, logits_to_keep=1)
                    inputs = _next(inputs, output)
                turn.append({part: seconds / count for part, seconds in clock.seconds.items()})
    return {job: _medians(turn[1:]) for job, turn in found.items()}


def _next(inputs: dict[str, Any], output: Any) -> dict[str, Any]:
    """Arguments of the step behind `output`."""
    mask = inputs["attention_mask"]
    return {
        "input_ids": output.logits[:, -1:].argmax(-1),
        "attention_mask": torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1),
        "past_key_values": output.past_key_values,
    }


def _medians(turns: list[dict[str, float]]) -> dict[str, float]:
    parts = sorted({part for turn in turns for part in turn})
    return {part: statistics.median(turn.get(part, 0.0) for turn in turns) for part in parts}


@contextmanager
def _watched(model: Any, clock: Clock) -> Iterator[None]:
    """Everything that is a part tells the clock when it begins and ends."""
    with ExitStack() as stack:
        for module, part in _parts(model).items():
            before = module.register_forward_pre_hook(lambda *_, part=part: clock.enter(part), prepend=True)
            after = module.register_forward_hook(lambda *_: clock.leave(), always_call=True)
            stack.callback(before.remove)
            stack.callback(after.remove)
        for kind in (SlotLayer, DynamicLayer):
            stack.enter_context(_method(kind, "update", partial(clock.part, "KV cache")))
        yield


def _parts(model: Any) -> dict[nn.Module, str]:
    """Module -> the part that its seconds are."""
    rooms = family(model)
    roots = {"tower": [rooms.tower_blocks], "projector": rooms.projectors, "decoder": [rooms.decoder_layers]}
    inside = {module: room for room, roots in roots.items() for root in roots for module in root.modules()}
    parts = {}
    for name, module in model.named_modules():
        room, kind = inside.get(module), type(module).__name__.lower()
        if isinstance(module, QuantizedEmbedding):
            continue
        if isinstance(module, W4A4Linear | TiedHead | nn.Linear):
            parts[module] = "lm_head" if room is None else f"{room} linears"
        elif kind.endswith("norm"):
            parts[module] = "norms"
        elif room is not None and name.endswith("attn"):
            parts[module] = f"{room} attention"
        elif parts.get(model.get_submodule(name.rpartition(".")[0])) == "activations":
            # Inside an MLP, which is the part already: with a hook here its one operator would not run.
            continue
        elif room is not None and name.endswith(("mlp", "act_fn", "activation_fn", ".act")):
            parts[module] = "activations"
    return parts


def _pruner(subject: Subject, clock: Clock) -> Pruner:
    """A Pruner whose hooks are the part "pruning"."""
    methods = {name: _timed(getattr(Pruner, name), partial(clock.part, "pruning")) for name in _HOOKS}
    return type("ProfiledPruner", (Pruner,), methods)(subject.model, subject.recipe, subject.recipe.scheme)


@contextmanager
def _method(kind: type, name: str, around: Callable[[], Any]) -> Iterator[None]:
    """Inside the block a method of `kind` runs inside `around()`."""
    original = getattr(kind, name)
    setattr(kind, name, _timed(original, around))
    try:
        yield
    finally:
        setattr(kind, name, original)


def _timed(function: Callable[..., Any], around: Callable[[], Any]) -> Callable[..., Any]:
    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with around():
            return function(*args, **kwargs)

    return run
