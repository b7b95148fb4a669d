"""How many visual tokens go on from which layer, and what that costs a prefill.

    (5) K_i = ceil(r_i * V0)            `keep_count`

A schedule is a staircase over the decoder layers: after some of them fewer tokens go on. Everything here is a pure
function of numbers; quota/allocation decides which schedule it is to be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from quota.errors import QuotaError, check_number

# Far above the round-off of a ratio (1e-16 of its value), far below what one token of an image is worth.
_ROUND_OFF = 1e-12

Work = Callable[[int], float]
"""Cost of one decoder layer by the number of its visual tokens: tokens, GFLOPs, KV bytes, milliseconds."""


@dataclass(frozen=True)
class Schedule:
    """Where visual tokens are dropped, and how many stay. Without a layer all of them do."""

    layers: tuple[int, ...] = ()
    """Decoder layers after which fewer tokens go on, ascending; -1 stands for the place before the first one."""
    ratios: tuple[float, ...] = ()
    """What is left after each, relative to the tokens V0 at first; never rising."""

    @classmethod
    def of_counts(cls, counts: Iterable[tuple[int, int]], tokens: int) -> Schedule:
        """From (layer, tokens left after it) and V0 = `tokens`."""
        pairs = list(counts)
        return cls(tuple(layer for layer, _ in pairs), tuple(count / tokens for _, count in pairs))

    def counts(self, tokens: int) -> list[int]:
        """Equation (5): how many of an image's `tokens` are left after each layer."""
        return [keep_count(ratio, tokens) for ratio in self.ratios]

    def entering(self, tokens: int, depth: int) -> list[int]:
        """How many of `tokens` enter each of `depth` decoder layers."""
        left = dict(zip(self.layers, self.counts(tokens), strict=True))
        entering = [left.get(-1, tokens)]
        for layer in range(depth - 1):
            entering.append(left.get(layer, entering[-1]))
        return entering

    def kept(self, tokens: int, depth: int) -> list[int]:
        """How many of `tokens` the KV cache of each of `depth` decoder layers keeps: a cut after it shortens it too."""
        return self.entering(tokens, depth + 1)[1:]

    def cost(self, tokens: int, depth: int, work: Work, cut: float = 0.0, kept: bool = False) -> float:
        """What it costs over `depth` layers, of `tokens` at first; `cut` is what a cut itself does.

        By the tokens that enter each layer, or else by those that its cache has `kept`.
        """
        counts = self.kept(tokens, depth) if kept else self.entering(tokens, depth)
        return sum(map(work, counts)) + cut * len(self.layers)

    def compute(self, tokens: int, depth: int, text_config: Any) -> float:
        """Prefill arithmetic of the visual tokens, relative to keeping all."""
        return prefill_flops_ratio(self.entering(tokens, depth), tokens, text_config)


def keep_count(ratio: float, tokens: int) -> int:
    """Equation (5): how many of `tokens` visual tokens a keep ratio leaves, rounded up.

    Immune to round-off: 7% of 100 is 7, though 0.07 * 100 is a hair above 7 in floating point. Never above
    `tokens`. Raises QuotaError for a ratio outside (0, 1] or a negative number of tokens.
    """
    check_keep(ratio)
    if tokens < 0:
        raise QuotaError(f"a number of visual tokens cannot be negative, got {tokens}")
    return min(tokens, math.ceil(ratio * tokens * (1 - _ROUND_OFF)))


def check_keep(keep: float) -> None:
    """Raise QuotaError unless `keep` is a ratio in (0, 1]."""
    check_number("keep", keep, above=0, at_most=1, hint="0.30 keeps 30% of the visual tokens")


def layer_work(tokens: int, text_config: Any) -> Work:
    """Arithmetic of one layer's prefill by its visual tokens, relative to all `tokens` of them."""
    return lambda count: prefill_flops_ratio([count], tokens, text_config)


def prefill_flops_ratio(tokens_per_layer: Sequence[int], tokens: int, text_config: Any) -> float:
    """Arithmetic of the visual tokens in some decoder layers' prefill, relative to all `tokens` of them in each.

    Per layer with n tokens: the projections of attention and of the gated MLP, linear in n, and the two attention
    products, quadratic in n (causality not discounted).
    """
    width, inner = text_config.hidden_size, text_config.intermediate_size
    heads = text_config.num_attention_heads
    head = getattr(text_config, "head_dim", None) or width // heads
    kv_heads = getattr(text_config, "num_key_value_heads", None) or heads
    per_token = 2 * width * head * (heads + kv_heads) + 3 * width * inner

    def work(count: int) -> int:
        return count * per_token + 2 * count**2 * heads * head

    return sum(work(count) for count in tokens_per_layer) / (len(tokens_per_layer) * work(tokens))
