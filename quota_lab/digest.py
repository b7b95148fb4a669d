"""Which code made a figure: outcomes that are kept in files are told apart by it, so that none of them is stale."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from functools import cache
from pathlib import Path

import quota

_ROOTS = (Path(quota.__file__).parent, Path(__file__).parent)
_ENDINGS = {".py", ".cpp", ".h"}


@cache
def code_digest(without: Collection[str] = frozenset()) -> str:
    """SHA-256 (hex) of the code of both packages, kernels included, but for their folders called `without`."""
    digest = hashlib.sha256()
    for root in _ROOTS:
        for file in sorted(root.rglob("*")):
            inside = file.relative_to(root)
            if file.suffix in _ENDINGS and inside.parts[0] not in without:
                digest.update(f"{root.name}/{inside.as_posix()}".encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()
