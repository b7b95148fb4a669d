"""Many passes over the same prompts that begin alike: what they share is run once.

All passes that cut visual tokens after decoder layer l have the tower, the projectors and the layers in front of l in
common. `Replay` holds, for every prompt,

    p_i      what projector i gave
    x_l      what the layer in front of l gave

and while it plays, those modules give it again and the modules in front of them pass on what they get. The model's own
code and all hooks run as ever around them, so what comes out is what a whole pass gives, bit for bit. Layers that do
not compute leave the cache empty: only prefill can be played, not what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from quota.blocks import Reached, forward_is
from quota.models import family


class Replay:
    """What passes of `model` over `prompts`, arguments of its forward pass, have in common."""

    def __init__(self, model: Any, prompts: Sequence[Any]) -> None:
        self._model = model
        self._prompts = prompts
        self._family = family(model)
        self._silent: list[nn.Module] = []
        self._given: dict[nn.Module, list[list[Any]]] = {}
        """For each module and prompt what its calls gave, in order."""

    def logits(self) -> Tensor:
        """Logits of the word behind each prompt, [rows of all prompts, vocabulary].

        The first time a pass is whole, and from then on without the tower.
        """
        if self._given:
            return torch.cat([self._run(number) for number in range(len(self._prompts))])
        return torch.cat(self._record(self._family.projectors, list(self._family.tower_blocks)))

    def begin_at(self, layer: int) -> None:
        """After a whole pass: begin at decoder `layer` from now on, not in front of an earlier beginning."""
        layers = list(self._family.decoder_layers)
        if layer < 1:
            return
        projectors = {module: self._given[module] for module in self._family.projectors}
        self._record([layers[layer - 1]], [*self._family.tower_blocks, *layers[: layer - 1]], stop=True)
        # Of layers only the last is held: the one before it no longer computes.
        self._given = {**projectors, layers[layer - 1]: self._given[layers[layer - 1]]}

    def _record(self, modules: Sequence[nn.Module], silent: list[nn.Module], stop: bool = False) -> list[Tensor]:
        """Run all prompts and hold what `modules` give, after which `silent` need not compute; `stop` there."""
        given: dict[nn.Module, list[list[Any]]] = {module: [] for module in modules}
        found = []
        for number in range(len(self._prompts)):
            with ExitStack() as watched, suppress(Reached):
                for module in modules:
                    given[module].append([])
                    watched.enter_context(forward_is(module, _recording(module.forward, given[module][-1], stop)))
                found.append(self._run(number))
        self._given |= given
        self._silent = silent
        return found

    @torch.inference_mode()
    def _run(self, number: int) -> Tensor:
        with self._playing(number):
            return self._model(**self._prompts[number].to(self._model.device), logits_to_keep=1).logits[:, -1]

    @contextmanager
    def _playing(self, number: int) -> Iterator[None]:
        with ExitStack() as replaced:
            for module in self._silent:
                replaced.enter_context(forward_is(module, _pass_on))
            for module, given in self._given.items():
                replaced.enter_context(forward_is(module, _playing_back(given[number])))
            yield


def _recording(forward: Callable[..., Any], given: list[Any], stop: bool) -> Callable[..., Any]:
    def record(*args: Any, **kwargs: Any) -> Any:
        given.append(forward(*args, **kwargs))
        if stop:
            raise Reached
        return given[-1]

    return record


def _playing_back(given: list[Any]) -> Callable[..., Any]:
    calls = iter(given)
    return lambda *args, **kwargs: next(calls)


def _pass_on(hidden: Any, *args: Any, **kwargs: Any) -> Any:
    return hidden
