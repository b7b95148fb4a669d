"""Layers that read the very same tensor: their input is quantised once, and they run as one product.

Queries, keys and values do, gate and up do, and whatever else an architecture feeds from one tensor. None of it is
known by name. A thread remembers what its last layer read; a layer that is handed the same tensor right after it is
its sibling from then on. In later passes the first of them, the leader, computes all and lays the others' outputs
by until they are called, with that tensor. If one is not, it is no sibling any more.

Modules, hooks and checkpoints stay as they are, and so does every bit: rows of a product do not depend on each
other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any
from weakref import ref

from torch import Tensor


class Siblings:
    """The other layers that read what a leader reads. Belongs to one layer; not copied with it."""

    def __init__(self) -> None:
        self._known: list[ref[Any]] = []

    def __len__(self) -> int:
        return len(self.layers())

    def layers(self) -> list[Any]:
        """In calling order; those that are gone left out."""
        return [layer for known in self._known if (layer := known()) is not None]

    def add(self, layer: Any) -> None:
        """`layer` reads what the leader has read."""
        if layer not in self.layers():
            self._known.append(ref(layer))

    def drop(self, layers: Sequence[Any]) -> None:
        """These were expected, and not called."""
        self._known = [known for known in self._known if known() not in layers]

    def __reduce__(self) -> tuple[type[Siblings], tuple[()]]:
        return Siblings, ()


class _Last(threading.local):
    """What this thread's last leader read, and what was computed for layers that are still to be called."""

    def __init__(self) -> None:
        self.leader: ref[Any] | None = None
        self.source: ref[Tensor] | None = None
        self.version = 0
        self.ready: dict[Any, Tensor] = {}

    def read(self, x: Tensor) -> bool:
        """Whether `x` is what the leader read, not written to since."""
        return self.source is not None and self.source() is x and self.version == _version(x)


_last = _Last()


def shared(layer: Any, x: Tensor, compute: Callable[[list[Any]], list[Tensor]]) -> Tensor:
    """The output of `layer` for `x`, by `compute`, which takes layers that read `x` and gives the output of each.

    `layer.siblings` is its `Siblings`, `layer.alike(other)` says whether both quantise what they read in one way.
    """
    leader = _last.leader() if _last.leader is not None else None
    if leader is not None and leader is not layer and _last.read(x):
        if (output := _last.ready.pop(layer, None)) is not None:
            return output
        if leader.alike(layer):
            leader.siblings.add(layer)
            return compute([layer])[0]
    if leader is not None and _last.ready:
        leader.siblings.drop(list(_last.ready))
    _last.ready = {}
    _last.leader, _last.source, _last.version = ref(layer), ref(x), _version(x)
    others = [other for other in layer.siblings.layers() if layer.alike(other)]
    output, *outputs = compute([layer, *others])
    _last.ready = dict(zip(others, outputs, strict=True))
    return output


def _version(x: Tensor) -> int:
    # Inference tensors do not count what is written to them.
    return 0 if x.is_inference() else x._version
