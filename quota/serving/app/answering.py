"""One answer, as it comes: its words, how long they took, what the cache holds, which visual tokens were kept.

The model runs in a thread of its own, which has the recipe of this answer and no other (`Pruner.running`); the page
reads what it says. A reader that leaves cancels it: it ends with the token that it is at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

import torch
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList, TextStreamer

from quota.attention.size import cache_bytes
from quota.errors import QuotaError
from quota.models import Boxes, family
from quota.prompts import build_inputs, decode, generate
from quota.pruning.pruner import record
from quota.pruning.recipe import PruningRecipe
from quota.report.explain import kept_by
from quota.samples import Sample
from quota.serving.requests import DEFAULT_TOKENS


@dataclass(frozen=True)
class Answer:
    """What has been said so far."""

    text: str = ""
    tokens: int = 0
    first_token: float | None = None
    """Seconds from the question to the first token: picture, prompt and prefill."""
    seconds: float = 0.0
    """From the first token to the latest."""
    cache_bytes: int | None = None
    """Of the KV cache after the prefill."""
    kept: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """Candidate layer -> visual tokens that went on from it."""
    tokens_per_layer: Sequence[int] = ()
    """Visual tokens that entered each decoder layer."""
    boxes: Boxes = field(default_factory=list)
    """Where each visual token stands."""
    unplaced: str = ""
    """Why they stand nowhere."""
    finished: bool = False

    @property
    def tokens_per_second(self) -> float | None:
        """Of those after the first; None if there are none."""
        return (self.tokens - 1) / self.seconds if self.tokens > 1 and self.seconds > 0 else None


def answers(
    model: Any,
    processor: Any,
    sample: Sample,
    recipe: PruningRecipe,
    cancelled: Event,
    pause: Callable[[], float] = lambda: 0.0,
) -> Generator[Answer]:
    """The answer under `recipe`, again and again while it grows; the last one is `finished` unless it was `cancelled`.

    `pause` is called before every token, and returns seconds that are not counted. Raises QuotaError for what the model
    cannot be asked. Closing the iterator cancels.
    """
    said: SimpleQueue[Answer | BaseException | None] = SimpleQueue()

    def work() -> None:
        try:
            with model.quota_pruner.running(recipe):
                _answer(model, processor, sample, _Streamer(processor, said.put, cancelled, pause))
        except BaseException as error:
            said.put(error)
        else:
            said.put(None)

    worker = Thread(target=copy_context().run, args=(work,), daemon=True)
    worker.start()
    try:
        while (one := said.get()) is not None:
            if isinstance(one, BaseException):
                raise one
            yield one
    except BaseException:
        cancelled.set()
        raise
    finally:
        worker.join()


def _answer(model: Any, processor: Any, sample: Sample, streamer: _Streamer) -> None:
    inputs = build_inputs(processor, [sample])
    boxes, unplaced = _boxes(model, processor, inputs, sample)
    room = _room(model, inputs["input_ids"].shape[1])
    cache = streamer.cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    with record(model) as trace:
        tokens = generate(
            model,
            processor,
            inputs,
            room,
            past_key_values=cache,
            streamer=streamer,
            stopping_criteria=StoppingCriteriaList([streamer.stopping]),
        )
    if streamer.cancelled.is_set():
        return
    [text] = decode(processor, tokens)
    kept, entering = kept_by(trace), list(trace.tokens_per_layer)
    whole = {"text": text, "kept": kept, "tokens_per_layer": entering, "boxes": boxes, "unplaced": unplaced}
    streamer.say(replace(streamer.answer, finished=True, **whole))


def _boxes(model: Any, processor: Any, inputs: Any, sample: Sample) -> tuple[Boxes, str]:
    try:
        return family(model).boxes(processor, inputs, sample.pictures()), ""
    except QuotaError as error:
        return [], str(error)


def _room(model: Any, prompt: int) -> int:
    """Tokens that the answer to a prompt of so many may have. QuotaError if there is no room for one."""
    known = model.config.get_text_config().max_position_embeddings
    if prompt >= known:
        raise QuotaError(f"the question and its picture are {prompt:,} tokens, the model knows {known:,}; ask for less")
    return min(DEFAULT_TOKENS, known - prompt)


class _Streamer(TextStreamer):
    """Hears every token, and says what there is to the reader."""

    cache: Any = None

    def __init__(
        self, processor: Any, say: Callable[[Answer], None], cancelled: Event, pause: Callable[[], float]
    ) -> None:
        super().__init__(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.say, self.cancelled = say, cancelled
        self.answer = Answer()
        self.stopping = _Stopping(self)
        self._pause, self._began, self._paused = pause, time.perf_counter(), 0.0

    def put(self, value: torch.Tensor) -> None:
        # The prompt comes first.
        if not self.next_tokens_are_prompt:
            self._count()
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.answer = replace(self.answer, text=self.answer.text + text)
        self.say(self.answer)

    def stop(self) -> bool:
        """Whether nobody wants more; the place to give way to others."""
        self._paused += self._pause()
        return self.cancelled.is_set()

    def _count(self) -> None:
        now = time.perf_counter() - self._began - self._paused
        if self.answer.first_token is None:
            self.answer = replace(self.answer, tokens=1, first_token=now, cache_bytes=cache_bytes(self.cache))
        else:
            self.answer = replace(self.answer, tokens=self.answer.tokens + 1, seconds=now - self.answer.first_token)


class _Stopping(StoppingCriteria):
    def __init__(self, streamer: _Streamer) -> None:
        self._streamer = streamer

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor, **_: Any) -> torch.BoolTensor:
        """[B]: whether a sample ends here."""
        return torch.full(input_ids.shape[:1], self._streamer.stop(), device=input_ids.device)  # pyright: ignore
