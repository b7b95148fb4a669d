"""What tests of several backends share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.interpreted import interpreter


@pytest.fixture(scope="module")
def interpret() -> Iterator[Callable[..., Any]]:
    """Calls its first argument, a job of the triton backend, with the others."""
    with interpreter() as call:
        yield call
