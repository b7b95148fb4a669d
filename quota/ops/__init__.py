"""One operator, several backends: which there are, and which one runs.

A backend implements the quantised linear operator as `quota.ops.reference.linear` defines it and must equal
that one exactly before scaling. The choice is made by name: an argument, else the environment variable
QUOTA_BACKEND, else the default. A backend that is asked for and cannot run is an error; nothing is replaced
in silence.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from quota.errors import QuotaError
from quota.ops import reference

ENVIRONMENT_VARIABLE = "QUOTA_BACKEND"
DEFAULT = "reference"


@dataclass(frozen=True)
class Backend:
    """A named implementation; `linear` has the arguments and result of `quota.ops.reference.linear`."""

    name: str
    linear: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int], Tensor]


_BACKENDS = {backend.name: backend for backend in (Backend("reference", reference.linear),)}


def available_backends() -> tuple[str, ...]:
    """Names of the backends that can run on this machine."""
    return tuple(_BACKENDS)


def backend(name: str | None = None) -> Backend:
    """The backend called `name`, else the one that QUOTA_BACKEND names, else the default.

    Raises QuotaError for a name that is unknown or cannot run here.
    """
    chosen = name or os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT
    if chosen not in _BACKENDS:
        names = ", ".join(_BACKENDS)
        raise QuotaError(f"unknown backend {chosen!r}; choose one of {names} (argument or {ENVIRONMENT_VARIABLE})")
    return _BACKENDS[chosen]
