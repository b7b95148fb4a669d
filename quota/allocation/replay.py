"""Many passes over the same prompts and answers that begin alike: what they share is run once.

All passes that cut visual tokens after decoder layer l have the tower, the projectors and the layers in front of l in
common. `Replay` holds, for every prompt,

    p_i      what projector i gave
    x_l      what the layer in front of l gave, for the prompt and for the answer behind it

and while it plays, those modules give it again and the modules in front of them pass on what they get. The model's own
code and all hooks run as ever around them, so what comes out is what whole passes give, bit for bit. A prompt is one
prefill; its answer follows through the KV cache, all words at once, where the layers that do not compute have only
counted the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from quota.calibration.blocks import forward_is
from quota.models import family


class Replay:
    """What passes of `model` over `prompts`, arguments of its forward pass, and `answers` behind them have in common.

    `answers` are token ids [B, T], T at least 1. The model's KV cache is quota's (quota/attention/cache.py). While it
    plays, no other thread may use the model: what is played are its modules.
    """

    def __init__(self, model: Any, prompts: Sequence[Any], answers: Sequence[Tensor]) -> None:
        self._model = model
        self._prompts = prompts
        self._answers = answers
        self._family = family(model)
        self._silent: list[nn.Module] = []
        self._given: dict[nn.Module, list[list[Any]]] = {}
        """For each module and prompt what its calls gave, in order."""
        self._first = 0
        """The decoder layer that passes begin at."""

    def logits(self) -> Iterator[Tensor]:
        """For each prompt the logits that each word of its answer is chosen from, [B, T, vocabulary].

        The first time a pass is whole, and from then on without the tower.
        """
        if self._given:
            return (self._run(number) for number in range(len(self._prompts)))
        return self._record(self._family.projectors, list(self._family.tower_blocks))

    def begin_at(self, layer: int) -> None:
        """From now on passes begin at decoder `layer`. There has been a whole one."""
        layers, layer = list(self._family.decoder_layers), max(layer, 0)
        projectors = {module: self._given[module] for module in self._family.projectors}
        if layer < self._first:
            self._given, self._silent, self._first = projectors, list(self._family.tower_blocks), 0
        if layer == self._first:
            return
        # Nothing behind the layer that is recorded need compute.
        self._silent = [*self._silent, *layers[layer:]]
        for _ in self._record([layers[layer - 1]], [*self._family.tower_blocks, *layers[: layer - 1]]):
            pass
        # Of layers only the last is held: the one before it no longer computes.
        self._given = {**projectors, layers[layer - 1]: self._given[layers[layer - 1]]}
        self._first = layer

    def _record(self, modules: Sequence[nn.Module], silent: list[nn.Module]) -> Iterator[Tensor]:
        """Run all prompts and hold what `modules` give, after which `silent` need not compute."""
        given: dict[nn.Module, list[list[Any]]] = {module: [] for module in modules}
        for number in range(len(self._prompts)):
            with ExitStack() as watched:
                for module in modules:
                    given[module].append([])
                    watched.enter_context(forward_is(module, _recording(module.forward, given[module][-1])))
                found = self._run(number)
            yield found
        self._given |= given
        self._silent = silent

    @torch.inference_mode()
    def _run(self, number: int) -> Tensor:
        model, prompt = self._model, self._prompts[number].to(self._model.device)
        answer = self._answers[number].to(model.device)
        with self._playing(number):
            first = model(**prompt, use_cache=True, logits_to_keep=1)
            if answer.shape[1] == 1:
                return first.logits
            words, seen = answer[:, :-1], pad(prompt["attention_mask"], (0, answer.shape[1] - 1), value=1)
            behind = model(
                input_ids=words,
                attention_mask=seen,
                position_ids=_positions(self._family.base, seen, words.shape[1]),
                past_key_values=first.past_key_values,
                use_cache=True,
            )
        return torch.cat([first.logits, behind.logits], dim=1)

    @contextmanager
    def _playing(self, number: int) -> Iterator[None]:
        with ExitStack() as replaced:
            for module in self._silent:
                replaced.enter_context(forward_is(module, _pass_on))
            for module, given in self._given.items():
                replaced.enter_context(forward_is(module, _playing_back(given[number])))
            # Whoever gives without computing has still seen the tokens.
            for index, layer in enumerate(self._family.decoder_layers):
                if layer in self._given or layer in self._silent:
                    counted = layer.register_forward_pre_hook(partial(_count, index), with_kwargs=True)
                    replaced.callback(counted.remove)
            yield


def _recording(forward: Callable[..., Any], given: list[Any]) -> Callable[..., Any]:
    def record(*args: Any, **kwargs: Any) -> Any:
        given.append(forward(*args, **kwargs))
        return given[-1]

    return record


def _playing_back(given: list[Any]) -> Callable[..., Any]:
    calls = iter(given)
    return lambda *args, **kwargs: next(calls)


def _pass_on(hidden: Any, *args: Any, **kwargs: Any) -> Any:
    return hidden


def _count(index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    kwargs["past_key_values"].layers[index].skip(args[0].shape[1])


def _positions(base: Any, seen: Tensor, words: int) -> Tensor | None:
    """Where M-RoPE places the last `words` of the tokens `seen` [B, L]; other models count by their cache."""
    deltas = getattr(base, "rope_deltas", None)
    if deltas is None:
        return None
    return (seen.cumsum(dim=1)[:, -words:] - 1 + deltas).expand(3, -1, -1)
