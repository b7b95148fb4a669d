"""How far RoPE turned the tokens that are stored, for keys with a centre before RoPE (quota/attention/turns.py).

All that a request leaves in the worker beside its blocks: a row [D] for each token that a stage stores, shared by the
layers of the stage. A prefill writes it anew, so a request that was preempted finds nothing old; it goes with the
request. Models whose key projections have no bias need none of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from quota.attention.slots import append


class StoredTurns:
    """The tables of one worker."""

    def __init__(self) -> None:
        self._tables: dict[str, dict[int, Tensor]] = {}

    def store(self, request: str, stage: int, first: int, rows: Tensor) -> None:
        """`rows` [T, D] are those of the tokens that a stage of a request stores from slot `first` on."""
        tables = self._tables.setdefault(request, {})
        tables[stage] = append(tables.get(stage) if first else None, first, rows[None], 1)

    def of(self, requests: Sequence[str], stage: int, tokens: int) -> Tensor:
        """[B, T, D] of the first `tokens` that a stage stores; where a request has fewer, anything."""
        found = [self._tables[request][stage][0, :tokens] for request in requests]
        table = found[0].new_zeros(len(found), tokens, found[0].shape[1])
        for row, own in zip(table, found, strict=True):
            row[: len(own)] = own
        return table

    def forget(self, request: str) -> None:
        """A request has ended."""
        self._tables.pop(request, None)

    def __len__(self) -> int:
        """Requests with tables."""
        return len(self._tables)
