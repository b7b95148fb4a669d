"""The version of this package, and of those that it runs with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__version__ = "0.1.0"


def versions(*packages: str) -> dict[str, str]:
    """Name -> version of quota and of those of `packages` that are installed."""
    found = {"quota": __version__}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
