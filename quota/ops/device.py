"""The device that models are loaded to: the CPU, unless a command asks for another by `--device`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from quota.errors import QuotaError

_CPU = torch.device("cpu")
_TIMES = 4
"""What a GPU takes at once is so many times what a CPU does: each launch costs, however little it computes."""
# A plain variable, as that of the backend.
_used = _CPU


def chosen() -> torch.device:
    """Where a model that is loaded now goes."""
    return _used


@contextmanager
def use(name: str | None) -> Iterator[None]:
    """Load models to the device of this name ("cpu", "cuda", "cuda:1") inside the block; None leaves it as it is.

    Raises QuotaError, before the block, for a name that is none, and for a device that torch does not find.
    """
    global _used
    before = _used
    _used = before if name is None else _by_name(name)
    try:
        yield
    finally:
        _used = before


def at_once(count: int, device: torch.device) -> int:
    """How many go in a batch on `device`, where `count` are right for a CPU."""
    return count if device.type == "cpu" else _TIMES * count


def present() -> list[torch.device]:
    """The processor and each CUDA device."""
    return [_CPU, *(torch.device("cuda", number) for number in range(torch.cuda.device_count()))]


def _by_name(name: str) -> torch.device:
    found = present()
    known = {str(one): one for one in found} | ({"cuda": found[1]} if len(found) > 1 else {})
    if name not in known:
        raise QuotaError(f"there is no device {name!r} here; choose one of {', '.join(known)}")
    return known[name]
