"""State of a pass on objects that all passes share: hooks of a model keep it apart, thread by thread."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")


class PerThread(Generic[T]):
    """An attribute of which every thread has a value of its own, None at first: the state of a pass.

    A copy of the object has none. A context that is handed to another thread (`contextvars.copy_context`) takes the
    values with it.
    """

    def __init__(self) -> None:
        self._values: ContextVar[WeakKeyDictionary[object, T] | None] = ContextVar("value of each owner", default=None)

    def __get__(self, owner: object, kind: type | None = None) -> T | None:
        values = self._values.get()
        return None if values is None else values.get(owner)

    def __set__(self, owner: object, value: T | None) -> None:
        # A copy, as contexts that were copied share the old one.
        values = WeakKeyDictionary(self._values.get() or {})
        if value is None:
            values.pop(owner, None)
        else:
            values[owner] = value
        self._values.set(values)
