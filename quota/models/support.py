"""What is supported and tested of a family: the rows of `quota doctor`, which the tests hold against themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedModel

from quota.models.family import Family

PROMPTS = ("batch 1", "left padding", "two images")
VIDEO = "video"
RUNS = ("greedy", "beam search", "later turn", "drafted words", "keep 1.0", "quantised cache", "W4A4KV4")
"""Ways to run, each tested in every family; pruned in full precision with sdpa and with eager attention."""


@dataclass(frozen=True)
class Support:
    """One supported architecture."""

    title: str
    rooms: Callable[[PreTrainedModel], Family]
    """Where its rooms are. Raises QuotaError for variants that cannot work or have not been tested."""
    prompts: tuple[str, ...] = PROMPTS
    """Kinds of prompts it is tested on."""
    left_to_torch: tuple[str, ...] = ()
    """Classes of its norms, gated products and activations that no operator is known for."""


def with_video(title: str, rooms: Callable[[PreTrainedModel], Family]) -> Support:
    """Support for a family that takes videos too."""
    return Support(title, rooms, (*PROMPTS, VIDEO))
