"""What a prompt leaves in the KV cache by its schedule: what a budget in bytes is kept by.

    B(s) = rest + token * sum_l n_l / L

n_l visual tokens are kept by the cache of decoder layer l of L, `token` bytes are those of one token in all layers with
scales and zero points, and `rest` is what no schedule changes: the text, and what goes by the tokens seen. All of it is
counted in the cache itself, once. A layer with a sliding window may hold less, so B is what the prompt takes at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from quota.allocation.solver import Limit
from quota.attention.size import lasting_bytes, token_bytes
from quota.errors import QuotaError
from quota.pruning.schedule import Schedule


@dataclass(frozen=True)
class CacheCost:
    """What the KV cache of the typical prompt is made of, in bytes."""

    rest: float
    token: float
    """A token, in all layers."""

    def bytes(self, schedule: Schedule, tokens: int, depth: int) -> float:
        """What the prompt takes under `schedule`, with `tokens` visual tokens at first and `depth` decoder layers."""
        return self.rest + schedule.cost(tokens, depth, self._work(depth), kept=True)

    def limit(self, most: float, tokens: int, depth: int) -> Limit:
        """For schedules under which the prompt takes at most so many bytes. QuotaError if there is nothing to spend."""
        if most <= self.rest:
            everything = self.bytes(Schedule(), tokens, depth)
            raise QuotaError(
                f"a KV cache of {most:,.0f} bytes is out of reach: a typical prompt takes {self.rest:,.0f} without any "
                f"visual token, and {everything:,.0f} with all of them"
            )
        return Limit(most - self.rest + 1e-6, self._work(depth), kept=True)

    def _work(self, depth: int) -> Any:
        return lambda count: count * self.token / depth


def cache_cost(model: Any, inputs: Any, tokens: int) -> CacheCost:
    """Of a model, deployed and not pruned, for the `inputs` of one prompt; V0 is `tokens`."""
    with torch.inference_mode():
        cache = model(**inputs, use_cache=True, logits_to_keep=1).past_key_values
    token = token_bytes(cache)
    return CacheCost(lasting_bytes(cache) + token * (inputs["input_ids"].shape[1] - tokens), token)
