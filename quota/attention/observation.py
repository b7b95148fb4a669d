"""What one attention call is to measure, and what it measured."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Observation:
    """What to add up in one attention call, and the sums once it has run.

    B samples, T queries of this forward pass, S keys of which the last T belong to the same tokens.
    """

    text: Tensor
    """[B, T] bool: queries that are text."""
    visual: Tensor
    """[B, T] bool: queries that are visual tokens."""
    keys: Tensor
    """[B, S] bool: keys that may be attended to; padding and empty slots may not. Where attention is not causal, the
    layer's mask says it instead."""
    wanted: Collection[str] = ("inter", "intra")
    """Which of the following to measure."""
    inter: Tensor | None = field(default=None, init=False)
    """[B, T] float32, attention that each token of this pass receives from the text."""
    intra: Tensor | None = field(default=None, init=False)
    """[B, T] float32, the same from the visual tokens."""
    last: Tensor | None = field(default=None, init=False)
    """[B, T] float32, the same from the last text token."""
    states: Tensor | None = field(default=None, init=False)
    """[B, T, G * D], the tokens' keys (wanted as "keys")."""

    @property
    def measures(self) -> bool:
        """Whether anything is wanted of the attention call: of scorers, not all look at attention."""
        return bool({"inter", "intra", "last", "keys"} & {*self.wanted})

    def sets(self) -> dict[str, Tensor]:
        """Name of every sum that is wanted -> its queries, [B, T] bool."""
        queries = {"inter": lambda: self.text, "intra": lambda: self.visual, "last": self._final}
        return {name: rows() for name, rows in queries.items() if name in self.wanted}

    def _final(self) -> Tensor:
        return self.text & (self.text.flip(1).cumsum(dim=1).flip(1) == 1)
