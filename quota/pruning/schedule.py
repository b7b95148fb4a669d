"""How many visual tokens go on from which layer, and what that costs a prefill.

    (5) K_i = ceil(r_i * V0)            `keep_count`

A schedule is a staircase over the decoder layers: after some of them fewer tokens go on. Everything here is a pure
function of numbers; quota/allocation decides which schedule it is to be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quota.errors import QuotaError

# Far above the round-off of a ratio (1e-16 of its value), far below what one token of an image is worth.
_ROUND_OFF = 1e-12


Work = Callable[[int], float]
"""Cost of one decoder layer by the number of visual tokens that enter it."""


Schedule = tuple[tuple[int, int], ...]
"""(candidate layer, tokens left after it), ascending in layers."""


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
    if not 0 < keep <= 1:
        raise QuotaError(f"keep must be above 0 and at most 1 (0.30 keeps 30% of the visual tokens), got {keep}")


def tokens_entering(schedule: Mapping[int, int], tokens: int, depth: int) -> list[int]:
    """Visual tokens that enter each of `depth` decoder layers.

    `schedule` says how many of the `tokens` go on from a layer; -1 stands for the place before the first one.
    """
    entering = [schedule.get(-1, tokens)]
    for layer in range(depth - 1):
        entering.append(schedule.get(layer, entering[-1]))
    return entering


def cost(schedule: Schedule, tokens: int, depth: int, work: Work, cut: float = 0.0) -> float:
    """What a schedule costs over `depth` decoder layers, of `tokens` at first."""
    return sum(map(work, tokens_entering(dict(schedule), tokens, depth))) + cut * len(schedule)


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
