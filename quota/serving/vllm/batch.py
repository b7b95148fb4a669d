"""Whose the rows of a pass are: vLLM lays the new tokens of all its requests behind one another.

A request brings its whole prompt, or the one token that it has just been given. One that was preempted comes again
with its prompt and all that it was given so far: its prompt drops the tokens that it dropped before, by the scores of
the prompt alone, and what was given stands behind it as its tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from quota.pruning.presence import Presence
from quota.pruning.ranking import Choice
from quota.serving.vllm.stages import image_sizes


@dataclass
class Part:
    """One request's rows of a pass, at the decoder layer that comes next."""

    request: str
    seen: int
    """Tokens that were computed before."""
    rows: int
    """Of this pass, that are left."""
    sizes: list[int]
    """Visual tokens of each of its images, before anything was dropped."""
    presence: Presence | None = None
    """Its prompt; None if it brings one token."""
    tail: int = 0
    """Rows behind the prompt."""
    choice: Choice | None = field(default=None)
    """What a layer that cuts has chosen; the rows are still there."""

    @property
    def prompt(self) -> int:
        """Rows of the prompt that are left."""
        return self.rows - self.tail


def parts_of(runner: Any) -> list[Part]:
    """The requests of the pass that a model runner of vLLM has prepared, in the order of their rows."""
    batch, starts = runner.input_batch, runner.query_start_loc.cpu.tolist()
    parts = []
    for index, request in enumerate(batch.req_ids):
        state = runner.requests[request]
        seen, rows = int(batch.num_computed_tokens_cpu[index]), starts[index + 1] - starts[index]
        parts.append(part_of(request, seen, rows, state.num_prompt_tokens, state.mm_features))
    return parts


def part_of(request: str, seen: int, rows: int, prompt: int, features: Sequence[Any]) -> Part:
    """The part of a request with a prompt of so many tokens and vLLM's `mm_features`.

    RuntimeError for a piece of a prompt, which the scheduler does not make.
    """
    if seen >= prompt and rows == 1:
        return Part(request, seen, rows, image_sizes(features))
    if seen or rows < prompt:
        raise RuntimeError(f"{rows} tokens of a prompt of {prompt} behind {seen}: prompts must be prefilled whole")
    images = torch.full((1, prompt), -1)
    for number, feature in enumerate(sorted(features, key=lambda feature: feature.mm_position.offset)):
        place = feature.mm_position
        inside = slice(place.offset, place.offset + place.length)
        images[0, inside] = number if place.is_embed is None else torch.where(place.is_embed, number, -1)
    return Part(request, seen, rows, image_sizes(features), Presence(images, None, 0), rows - prompt)
