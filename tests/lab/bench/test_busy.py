"""A busy machine is told from one that only this process keeps busy."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from quota_lab.bench import busy
from quota_lab.bench.busy import Others
from quota_lab.bench.report import Report

needs_linux = pytest.mark.skipif(not busy._TIMES.is_file(), reason="the system does not tell")


@needs_linux
def test_other_processes_count() -> None:
    others = Others()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        time.sleep(1)
        share = others.share()
        process.kill()
    assert share is not None and share > 0.05


def test_own_work_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([100.0, 103.0])
    monkeypatch.setattr(busy, "_busy_seconds", lambda: next(seconds))
    own = iter([10.0, 13.0])
    monkeypatch.setattr(busy, "_own_seconds", lambda: next(own))
    assert Others().share() == 0


def test_where_the_system_does_not_tell_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy, "_busy_seconds", lambda: None)
    assert Others().share() is None
    assert Report(others=None).warning() is None


def test_a_report_warns() -> None:
    assert Report(others=0.02).warning() is None
    assert "took 30% of this machine" in str(Report(others=0.3).warning())
