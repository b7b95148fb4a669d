"""What somebody wants to spend on visual tokens.

A budget is a final keep ratio, or one of prefill arithmetic, prefill time or KV bytes, or both. Where nothing but the
final ratio is given, a schedule may spend what the published one with the same end would (quota/allocation/choose.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from quota.errors import QuotaError, check_number
from quota.pruning.schedule import check_keep

DEFAULT_KEEP = 0.30
"""The final keep ratio of those who ask for nothing."""
_LIMITS = ("compute", "milliseconds", "kv_bytes")


@dataclass(frozen=True)
class Budget:
    """At most one of `compute`, `milliseconds` and `kv_bytes`. QuotaError for two, and for numbers out of range."""

    keep: float | None = None
    """Share of visual tokens left in the end, in (0, 1]. None: what serves another limit best, or `DEFAULT_KEEP`."""
    compute: float | None = None
    """The largest share of the unpruned prefill arithmetic of visual tokens, in (0, 1]."""
    milliseconds: float | None = None
    """The longest that the prefill of a typical prompt may take on this machine (quota/allocation/clock.py)."""
    kv_bytes: float | None = None
    """The most that the KV cache may take after that prefill (quota/allocation/cache_cost.py)."""

    def __post_init__(self) -> None:
        """Check."""
        if self.keep is not None:
            check_keep(self.keep)
        given = [name for name in _LIMITS if getattr(self, name) is not None]
        for name in given:
            check_number(name, getattr(self, name), above=0, at_most=1 if name == "compute" else math.inf)
        if len(given) > 1:
            raise QuotaError(f"{' and '.join(given)} are {len(given)} budgets; give one of them")

    @property
    def limit(self) -> str | None:
        """The name of what limits it beside `keep`, None if nothing does."""
        return next((name for name in _LIMITS if getattr(self, name) is not None), None)

    @property
    def final(self) -> float | None:
        """The final keep ratio, None if that is open."""
        return DEFAULT_KEEP if self.keep is None and self.limit is None else self.keep
