"""The benchmark beside busy processes: it has them, both models decode beside them, and they end with it."""

from __future__ import annotations

import pytest
from support.tiny import tiny_config

from quota_lab.bench import models, threads

pytestmark = pytest.mark.slow


def test_both_models_decode_beside_busy_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[threads.subprocess.Popen[bytes]] = []

    class Noted(threads.subprocess.Popen):
        def __init__(self, command: list[str]) -> None:
            super().__init__(command)
            started.append(self)

    monkeypatch.setattr(threads.subprocess, "Popen", Noted)
    monkeypatch.setattr(threads, "subject", lambda name, quantized: models.random_subject(tiny_config(), quantized))
    report = threads.bench_threads((0, 1), new_tokens=3, turns=1)
    assert [row.shape for row in report.rows] == [f"reference quantized, {load} busy processes" for load in (0, 1)]
    assert all(row.job == "decode" and row.value > 0 and row.baseline_value > 0 for row in report.rows)
    assert len(started) == 1 and started[0].poll() is not None
