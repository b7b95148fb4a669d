"""How many threads a kernel gets.

Torch's number, which OMP_NUM_THREADS and torch.set_num_threads set, but no more than the container may use. A CPU quota
takes no processor away, so torch counts them all, and whoever runs on more than its share is stopped for the rest
of each period. In a child made by fork it is one: OpenMP's threads are gone there, and it would wait for them for ever.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath

import torch

_forked = False


def threads() -> int:
    """Threads for one call of a kernel, at least 1."""
    if _forked:
        return 1
    limit = _limit()
    return torch.get_num_threads() if limit is None else min(torch.get_num_threads(), limit)


@lru_cache
def _limit() -> int | None:
    share = processors(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return None if share is None else max(1, math.ceil(share))


def processors(groups: Path, root: Path) -> float | None:
    """How many processors' time this process may use by its CPU quota; None if there is none.

    groups: the file that names the control groups of the process, lines "number:controllers:path"; root: where they
    are mounted. The least of the process's own group and of those above it counts (version 2: `cpu.max`; version 1:
    `cpu.cfs_quota_us`). Inside a container the path may be the host's: what is not there is passed over.
    """
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return None
    return min((share for line in lines for share in _shares(line, root)), default=None)


def _shares(line: str, root: Path) -> Iterator[float]:
    _, _, rest = line.partition(":")
    controllers, _, path = rest.partition(":")
    if controllers and "cpu" not in controllers.split(","):
        return
    own = PurePosixPath(path.lstrip("/"))
    for group in (own, *own.parents):
        folder = root / controllers / group
        # "50000 100000": microseconds in each period; "max" or -1 in place of the first: no quota.
        words = _words(folder / "cpu.max")
        words = words or _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        if len(words) == 2 and all(word.isdecimal() and int(word) for word in words):
            yield int(words[0]) / int(words[1])


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


def _in_child() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_in_child)
