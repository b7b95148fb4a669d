"""What pruning itself costs: scoring, gathering and compaction, in seconds of a prefill.

Two parts, added up:

    the Pruner's hooks    ranking, cutting hidden states and cache, masks and rotary tables of the layers behind a
                          cut, and the full length restored at the end: timed where they stand, in a real prefill
    the attention sums    what attention with sums takes more than plain attention does, on the shapes of the
                          candidate layers: timed in turns, as the two are one call in the prefill
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from quota import ops
from quota.pruning.pruner import Pruner
from quota_lab.bench.models import Subject
from quota_lab.bench.timing import interleaved


class TimedPruner(Pruner):
    """A Pruner that adds up the seconds spent in its own hooks."""

    seconds = 0.0

    def _before_base(self, *args: Any) -> Any:
        return self._timed(super()._before_base, *args)

    def _before_decoder(self, *args: Any) -> Any:
        return self._timed(super()._before_decoder, *args)

    def _before_layer(self, *args: Any) -> Any:
        return self._timed(super()._before_layer, *args)

    def _after_layer(self, *args: Any) -> Any:
        return self._timed(super()._after_layer, *args)

    def _after_decoder(self, *args: Any) -> Any:
        return self._timed(super()._after_decoder, *args)

    def _timed(self, hook: Callable[..., Any], *args: Any) -> Any:
        began = time.perf_counter()
        result = hook(*args)
        self.seconds += time.perf_counter() - began
        return result


def overhead(subject: Subject, turns: int) -> tuple[float, float]:
    """(seconds spent on pruning, seconds of the whole prefill): medians over `turns`, after one that does not count."""
    hooks, prefills = [], []
    with TimedPruner(subject.model, subject.recipe, subject.recipe.scheme) as pruner:
        for _ in range(turns + 1):
            pruner.seconds, began = 0.0, time.perf_counter()
            with torch.inference_mode():
                subject.model(**subject.inputs, use_cache=True, logits_to_keep=1)
            prefills.append(time.perf_counter() - began)
            hooks.append(pruner.seconds)
    sums = sum(extra_attention(subject, tokens, turns) for tokens in candidate_lengths(subject))
    return statistics.median(hooks[1:]) + sums, statistics.median(prefills[1:])


def candidate_lengths(subject: Subject) -> list[int]:
    """Tokens, text included, that enter each candidate layer."""
    config = subject.model.config
    visual = int((subject.inputs["input_ids"] == config.image_token_id).sum())
    text = subject.inputs["input_ids"].shape[1] - visual
    entering = subject.recipe.tokens_per_layer(visual, config.text_config.num_hidden_layers)
    return [entering[layer] + text for layer in subject.recipe.layers if layer >= 0]


def extra_attention(subject: Subject, tokens: int, turns: int) -> float:
    """Seconds that attention over `tokens` takes longer because it also adds up what each token receives."""
    config = subject.model.config.text_config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    generator, dtype = torch.Generator().manual_seed(0), subject.model.dtype
    query = torch.randn(1, config.num_attention_heads, tokens, width, generator=generator).to(dtype)
    key, value = (
        torch.randn(1, config.num_key_value_heads, tokens, width, generator=generator).to(dtype) for _ in range(2)
    )
    # Two sets of queries, text and visual tokens.
    rows = torch.zeros(1, 2, tokens, dtype=torch.bool)
    rows[:, 0, -16:] = rows[:, 1, :-16] = True
    visible = torch.ones(1, tokens, dtype=torch.bool)
    scaling = width**-0.5

    def observed(turn: int) -> Any:
        return ops.for_attention(query.device).attention(query, key, value, rows, visible, scaling)

    plain = partial(functional.scaled_dot_product_attention, query, key, value, is_causal=True, enable_gqa=True)
    with torch.inference_mode():
        with_sums, without = interleaved([observed, lambda turn: plain()], max(turns, 5))
    return max(0.0, with_sums - without)
