"""Which backend ran which job: a record for reports.

Backends are chosen job by job (`quota.ops`), so "the" backend of a model is known only after it ran.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from quota.ops.interface import Backend


@dataclass
class Usage:
    """How often each backend was taken for each job ("linear", "cache", "attention", "tokens", "rows")."""

    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(job, backend) -> calls."""
    lacking: set[str] = field(default_factory=set)
    """Why a faster backend that runs here was passed over, as "cpu: no kernels for 3-bit caches", and what was left to
    torch."""

    def backends(self) -> dict[str, list[str]]:
        """Job -> backends that ran it, the most used first."""
        jobs: dict[str, list[str]] = {}
        for (job, name), _ in self.calls.most_common():
            jobs.setdefault(job, []).append(name)
        return dict(sorted(jobs.items()))

    def __str__(self) -> str:
        """ "cpu" if one ran everything, "linear: cpu, reference; cache: cpu" if not, "none" if no job ran.

        What was lacking follows in brackets.
        """
        jobs = self.backends()
        names = {name for found in jobs.values() for name in found}
        text = names.pop() if len(names) == 1 else "none"
        if names:
            text = "; ".join(f"{job}: {', '.join(found)}" for job, found in jobs.items())
        return f"{text} ({'; '.join(sorted(self.lacking))})" if self.lacking else text


_active: list[Usage] = []


@contextmanager
def record(into: Usage | None = None) -> Iterator[Usage]:
    """Note, inside the block and in all threads, which backend is taken for each job (added to `into`, if given)."""
    usage = Usage() if into is None else into
    _active.append(usage)
    try:
        yield usage
    finally:
        # By identity: two records that hold the same are equal.
        _active[:] = [other for other in _active if other is not usage]


def note(job: str, backend: Backend, lacking: Sequence[str]) -> Backend:
    """Write down that `backend` was taken for `job`, and what faster ones lacked for it; return it."""
    for usage in _active:
        usage.calls[job, backend.name] += 1
        usage.lacking.update(lacking)
    return backend


def lack(reason: str) -> None:
    """Write down that something was left to torch, and why."""
    for usage in _active:
        usage.lacking.add(reason)
