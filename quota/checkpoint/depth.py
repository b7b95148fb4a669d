"""More layers than a checkpoint can have: building them, even empty, would not end.

Every layer has a tensor of its own: a configuration that asks for more layers than the files hold tensors is damaged.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from quota.checkpoint.weights import count_tensors
from quota.errors import QuotaError
from quota.files import read_json

_DEPTH = re.compile(r"(num|n)_\w*layers?|depth")


def refuse_endless(source: Path) -> None:
    """QuotaError for a configuration in the folder `source` with more layers than its files hold tensors."""
    tensors = count_tensors(source)
    for name, layers in _depths(read_json(source / "config.json", "configuration")):
        if layers > tensors:
            raise QuotaError(
                f"{source / 'config.json'} asks for {name} of {layers}, but there are {tensors} tensors; copy it again"
            )


def _depths(config: Any) -> list[tuple[str, int]]:
    """Every number of layers in a configuration, nested ones too."""
    if not isinstance(config, dict):
        return []
    own = [(name, value) for name, value in config.items() if isinstance(value, int) and _DEPTH.fullmatch(name)]
    return own + [pair for value in config.values() for pair in _depths(value)]
