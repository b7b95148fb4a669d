"""Which code made a figure: outcomes that are kept in files are told apart by it, so that none of them is stale."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).parent
_ENDINGS = {".py", ".cpp", ".h"}


@cache
def code_digest(without: Collection[str] = frozenset()) -> str:
    """SHA-256 (hex) of the package's code, kernels included, but for the folders called `without`."""
    digest = hashlib.sha256()
    for file in sorted(_ROOT.rglob("*")):
        inside = file.relative_to(_ROOT)
        if file.suffix in _ENDINGS and inside.parts[0] not in without:
            digest.update(inside.as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()
