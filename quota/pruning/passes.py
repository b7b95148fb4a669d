"""One forward pass as a Pruner follows it: what the base model was given, and what has come of it so far."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from quota.attention.observation import Observation
from quota.pruning.deepstack import DeepStack
from quota.pruning.presence import Presence
from quota.pruning.recipe import PruningRecipe


@dataclass
class Pass:
    """One forward pass, from the base model's arguments on."""

    given: dict[str, Any]
    images: Tensor
    """[B, L]: the image of each position, -1 for text."""
    recipe: PruningRecipe
    presence: Presence | None = None
    """There is one inside the text model."""
    deepstack: DeepStack | None = None
    observation: Observation | None = None
    observing: ExitStack = field(default_factory=ExitStack)
    """Closed when the candidate layer being observed has run."""


def by_name(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of `module`, all of them by their names."""
    if not args:
        return dict(kwargs)
    given = _signature(type(module)).bind(module, *args, **kwargs).arguments
    del given["self"]
    return given | given.pop("kwargs", {})


@lru_cache
def _signature(model: type[nn.Module]) -> inspect.Signature:
    return inspect.signature(model.forward)
