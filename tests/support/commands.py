"""Run a command of `quota` inside the test's own process."""

from __future__ import annotations

import pytest

from quota.cli import main


def call(*arguments: object) -> int:
    """Exit code of `quota ARGUMENTS`."""
    with pytest.raises(SystemExit) as raised:
        main([str(argument) for argument in arguments])
    assert isinstance(raised.value.code, int)
    return raised.value.code
