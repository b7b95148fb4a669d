"""A lock that one run holds. That it dies with its process is tested where it is used, in test_streaming.py."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

import pytest

from quota.checkpoint.lock import held
from quota.errors import QuotaError


def test_one_holds_it_at_a_time_and_nothing_is_left(tmp_path: Path) -> None:
    file = tmp_path / "new" / "lock"
    with held(file, "taken"), pytest.raises(QuotaError, match="taken"), held(file, "taken"):
        pass
    with pytest.raises(OSError, match="of the block"), held(file, "taken"):
        raise OSError("of the block")
    assert list(file.parent.iterdir()) == []


def test_a_file_that_is_merely_there_locks_nothing(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    file.touch()
    with held(file, "taken"):
        assert file.exists()


def test_a_lock_on_a_removed_file_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, lock = tmp_path / "lock", fcntl.flock

    def late(opened: IO[str], how: int) -> None:
        file.unlink()
        lock(opened, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(QuotaError, match="taken"), held(file, "taken"):
        pass


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(QuotaError, match="cannot write"), held(tmp_path / "file" / "lock", "taken"):
        pass
