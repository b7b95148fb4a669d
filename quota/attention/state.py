"""What quota's attention does in the pass that this thread runs, and the switch that brings layers to call it.

Layers look up which attention they call in a configuration that they share, and that threads share: so the switch is
thrown by the first pass that wants quota's and thrown back by the last. What is done then is said by the context of
each thread. A pass that wants nothing, and meets the switch thrown by another, does what the user has chosen.

What an interrupted pass leaves is taken away by the next pass of its thread, or with the thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from threading import RLock
from typing import Any, Protocol

from torch import Tensor
from transformers import PreTrainedConfig

from quota.attention.observation import Observation

NAME = "quota"
"""Of quota's attention, in a configuration."""


class Sums(Protocol):
    """Running sums over attention calls (quota/attention/moments.py)."""

    def add(self, query: Tensor, key: Tensor) -> None:
        """query [B, H, T, D] and key [B, G, T, D], behind the rotary embedding."""
        ...


@dataclass(frozen=True)
class Attending:
    """What layers with one (text) configuration do besides what the user has chosen."""

    config: PreTrainedConfig
    causal: bool = True
    """Only the keys that exist need be told; else every query has its own, in the layer's mask."""
    deployed: bool = False
    """Attend by the backend, to a quantised cache."""
    observation: Observation | None = None
    """To be filled by the next call."""
    moments: Sums | None = None
    """Every call adds to these."""
    whole: bool = False
    """Attend by the backend, in place of torch's sdpa (quota/attention/tower.py)."""


_attending: ContextVar[Attending | None] = ContextVar("what attention does in this pass", default=None)


@contextmanager
def attending(config: PreTrainedConfig, **changes: Any) -> Iterator[None]:
    """Inside the block, attention of layers with this (text) config does what it did, with `changes`."""
    before, now = _attending.get(), replace(current(config), **changes)
    with _thrown(config):
        _attending.set(now)
        try:
            yield
        finally:
            # Of an interrupted pass this comes late, and from another thread if its own has ended.
            if _attending.get() is now:
                _attending.set(before)


def current(config: PreTrainedConfig) -> Attending:
    """What attention of layers with this config does in this thread; nothing of ours outside of `attending`."""
    found = _attending.get()
    return found if found is not None and found.config is config else Attending(config)


def reads_packed(queries: int) -> bool:
    """Whether the attention call that comes next, for so many queries a sample, does without the numbers themselves."""
    found = _attending.get()
    return queries == 1 and found is not None and found.deployed and found.observation is None


@dataclass
class _Switch:
    config: PreTrainedConfig
    """Held, so that no other gets its id."""
    passes: int = 0
    """How many want it thrown."""
    chosen: str | None = None
    """By the user."""


# One thread may come here twice: what an interrupted pass has left is collected at any time.
_lock = RLock()
_switches: dict[int, _Switch] = {}


@contextmanager
def _thrown(config: PreTrainedConfig) -> Iterator[None]:
    fresh = _Switch(config)
    with _lock:
        switch = _switches.setdefault(id(config), fresh)
        switch.passes += 1
        if config._attn_implementation != NAME:
            switch.chosen = config._attn_implementation
            config._attn_implementation = NAME
    try:
        yield
    finally:
        with _lock:
            switch.passes -= 1
            if not switch.passes:
                # The user may have made another choice meanwhile.
                if config._attn_implementation == NAME:
                    config._attn_implementation = switch.chosen
                del _switches[id(config)]


def chosen(config: PreTrainedConfig) -> str:
    """The implementation that the user has chosen for layers with this config, whatever other threads do."""
    with _lock:
        name, switch = config._attn_implementation, _switches.get(id(config))
        if name == NAME:
            name = None if switch is None else switch.chosen
    return name or "eager"


def implementation(config: PreTrainedConfig) -> str:
    """Whose masks layers with this config take: `NAME` over a quantised cache, else the implementation chosen."""
    return NAME if current(config).deployed else chosen(config)
