"""Which sources a library was built from: an editable install whose sources have moved on must not call an old one.

setup.py runs this file before anything is installed, so it needs nothing but Python.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

FOLDER = Path(__file__).with_name("src")


def digest(folder: Path = FOLDER) -> str | None:
    """SHA-256 (hex) of the kernels' sources; None where they are not, as in a wheel."""
    files = sorted(file for file in folder.glob("*") if file.suffix in (".cpp", ".h"))
    if not files:
        return None
    return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()
