"""What a client sends for an event, checked before Gradio touches it.

Gradio copies each file that an input names into the folder it serves, and fetches those that are addresses. Browsers
name none but the picture that they have just uploaded; who writes requests by hand may name any.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quota.errors import QuotaError

_FILE = {"_type": "gradio.FileData"}


def check_picture(value: Any, uploads: Path) -> None:
    """QuotaError unless `value` is nothing, or a file that lies in the folder `uploads`."""
    if value is None:
        return
    path = value.get("path") if isinstance(value, Mapping) and value.get("meta") == _FILE else None
    if not isinstance(path, str) or not _uploaded(path, uploads):
        raise QuotaError("the picture is no file that was uploaded here; choose it again")


def check_text(value: Any) -> None:
    """QuotaError for a question that is no text."""
    if not isinstance(value, str):
        raise QuotaError("the question is no text; write one")


def check_percent(value: Any) -> None:
    """QuotaError for a budget that is no number."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise QuotaError("the budget is no number; move the slider")


def _uploaded(path: str, uploads: Path) -> bool:
    try:
        file = Path(path).resolve()
        # An address is no absolute path, whatever folder the server runs in.
        return Path(path).is_absolute() and file.is_relative_to(uploads.resolve()) and file.is_file()
    except (OSError, ValueError):
        # A name that no file can have.
        return False
