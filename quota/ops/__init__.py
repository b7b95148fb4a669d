"""One operator interface, several backends: which there are, which one runs, and a record of which ones did.

A backend is an object as `quota.ops.interface.Backend` describes it. For every job one is chosen:

    by name    `use(name)` or the environment variable QUOTA_BACKEND: this one or an error, nothing in its place
    by speed   otherwise the first in the order of the device that runs on this machine and has the job

The second may differ from layer to layer (a fast backend need not know every bit width), so `record` notes what was
taken for what, and every report prints it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module

import torch

from quota.errors import QuotaError
from quota.ops.interface import Backend, CacheSpec, LinearSpec
from quota.ops.usage import Usage, lack, note, record

__all__ = [
    "ENVIRONMENT_VARIABLE",
    "NAMES",
    "Usage",
    "backend",
    "device_of",
    "for_attention",
    "for_cache",
    "for_linear",
    "for_rows",
    "for_tokens",
    "forced",
    "lack",
    "leads_attention",
    "order",
    "record",
    "use",
    "why_not",
]

ENVIRONMENT_VARIABLE = "QUOTA_BACKEND"

# Name -> module and class (called without arguments). Imported only when asked for: each may lack what it needs.
_REGISTRY = {
    "triton": ("quota.ops.triton", "TritonBackend"),
    "cpu": ("quota.ops.cpu", "CpuBackend"),
    "torch": ("quota.ops.torch_int8", "TorchBackend"),
    "reference": ("quota.ops.reference.backend", "ReferenceBackend"),
}
NAMES = tuple(_REGISTRY)

# Fastest first.
_ORDER = {"cuda": ("triton", "torch", "reference"), "cpu": ("cpu", "torch", "reference")}
_ANYWHERE = ("reference",)

_NO_PAIRS = "has no attention with a mask for each query"

# A plain variable, not one of the context: `generate` may run in a thread of its own.
_used: str | None = None


def why_not(name: str) -> str | None:
    """Why the backend called `name` cannot run on this machine; None if it can. QuotaError for an unknown name."""
    found = _load(name)
    return found if isinstance(found, str) else found.why_not()


def forced() -> str | None:
    """The backend that `use` or QUOTA_BACKEND asks for; None if the choice is free."""
    return _used or os.environ.get(ENVIRONMENT_VARIABLE) or None


@contextmanager
def use(name: str | None) -> Iterator[None]:
    """Force one backend inside the block, in all threads; None leaves the choice as it is.

    Raises QuotaError, before the block, for a name that is unknown or cannot run here.
    """
    global _used
    if name is not None:
        _by_name(name)
    before = _used
    _used = name or before
    try:
        yield
    finally:
        _used = before


def order(device: str) -> tuple[str, ...]:
    """Names of the backends made for a kind of device, the fastest first."""
    return _ORDER.get(device, _ANYWHERE)


def device_of(name: str) -> str:
    """The kind of device to try a backend on: an accelerator if it is made for one."""
    return "cuda" if name not in order("cpu") and torch.cuda.is_available() else "cpu"


def backend(name: str | None = None, device: torch.device | str = "cpu") -> Backend:
    """The backend called `name`, else the forced one, else the fastest that runs on this kind of device.

    Raises QuotaError for a name that is unknown or cannot run here.
    """
    return _choose(name or forced(), torch.device(device).type, None)[0]


def for_linear(spec: LinearSpec, device: torch.device) -> Backend:
    """The backend for a linear layer. QuotaError if one is forced and lacks such layers."""
    return note("linear", *_choose(forced(), device.type, spec))


def for_cache(spec: CacheSpec, device: torch.device) -> Backend:
    """The backend for the jobs of a cache. QuotaError if one is forced and lacks them."""
    return note("cache", *_choose(forced(), device.type, spec))


def leads_attention(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the backend for attention is faster than torch's own, also where nobody asks for sums."""
    return _choose(forced(), device.type, None)[0].leads_attention(dtype)


def for_attention(device: torch.device, pairs: bool = False) -> Backend:
    """The backend for prefill attention with sums; QuotaError if one is forced and lacks it.

    With `pairs` every query has keys of its own ([B, T, S]), which only the reference can take.
    """
    if not pairs:
        return note("attention", *_choose(forced(), device.type, None))
    if forced() not in (None, "reference"):
        raise QuotaError(f"backend {forced()!r} was asked for and {_NO_PAIRS}; choose 'reference' or none")
    faster = [name for name in order(device.type) if name != "reference" and why_not(name) is None]
    return note("attention", backend("reference", device), [f"{name}: {_NO_PAIRS}" for name in faster])


def for_tokens(device: torch.device) -> Backend:
    """The backend for activation_error, information and cut; QuotaError if one is forced and not for the device."""
    return note("tokens", *_choose(forced(), device.type, None))


def for_rows(device: torch.device) -> Backend:
    """The backend for norm, activate and gated; QuotaError if one is forced and not made for the device."""
    return note("rows", *_choose(forced(), device.type, None))


@lru_cache(maxsize=1024)
def _choose(name: str | None, device: str, spec: LinearSpec | CacheSpec | None) -> tuple[Backend, tuple[str, ...]]:
    """The backend to take, and what each faster one that runs here lacks."""
    if name is not None:
        found = _by_name(name)
        reason = _wrong_device(name, device) or _lacks(found, spec)
        if reason is not None:
            raise QuotaError(f"backend {name!r} was asked for and cannot run this: {reason}; choose another or none")
        return found, ()
    lacking: list[str] = []
    for candidate in order(device):
        found = _load(candidate)
        if isinstance(found, str) or found.why_not() is not None:
            continue
        reason = _lacks(found, spec)
        if reason is None:
            return found, tuple(lacking)
        lacking.append(f"{candidate}: {reason}")
    raise QuotaError(f"no backend can run {spec} on {device}; `quota doctor` says what each one needs")


def _by_name(name: str) -> Backend:
    found = _load(name)
    if isinstance(found, str) or found.why_not() is not None:
        raise QuotaError(f"backend {name!r} cannot run here: {why_not(name)}; `quota doctor` lists those that can")
    return found


@lru_cache
def _load(name: str) -> Backend | str:
    """The backend, or why it cannot be imported."""
    if name not in _REGISTRY:
        raise QuotaError(
            f"unknown backend {name!r}; choose one of {', '.join(NAMES)} (argument or {ENVIRONMENT_VARIABLE})"
        )
    module, attribute = _REGISTRY[name]
    try:
        found = import_module(module)
    except ImportError as error:
        return f"{error.name or module} cannot be imported"
    return getattr(found, attribute)() if hasattr(found, attribute) else f"{module} is not part of this installation"


def _lacks(found: Backend, spec: LinearSpec | CacheSpec | None) -> str | None:
    if spec is None:
        return None
    return found.lacks(spec) if isinstance(spec, LinearSpec) else found.lacks_cache(spec)


def _wrong_device(name: str, device: str) -> str | None:
    # Triton's interpreter works on tensors in main memory.
    if name in order(device) or (name == "triton" and os.environ.get("TRITON_INTERPRET") == "1"):
        return None
    return f"the tensors are on {device}"
