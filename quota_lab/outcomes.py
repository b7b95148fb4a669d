"""Outcomes in files: what was measured once is not measured again, and an interrupted table goes on where it stopped.

A file is named by what decides its content, the code that runs included (quota_lab/digest.py), so nothing stale is
reported.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quota.errors import QuotaError
from quota.files import write_atomically


def kept(file: Path, facts: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
    """The outcome in `file`, as JSON holds it; measured now and written with these `facts` if it is not there.

    QuotaError for a file that cannot be read.
    """
    if not file.is_file():
        began = time.perf_counter()
        outcome = measure()
        content = {**facts, "seconds": time.perf_counter() - began, "outcome": outcome}
        write_atomically(file, json.dumps(content, allow_nan=False) + "\n")
    try:
        return json.loads(file.read_text(encoding="utf-8"))["outcome"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise QuotaError(f"{file} is not an outcome; remove it and run again") from error
