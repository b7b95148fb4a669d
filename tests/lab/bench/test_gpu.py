"""The GPU benchmark as far as a machine without a GPU can run it: everything but graphs and events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from quota.errors import QuotaError
from quota.ops.reference import ReferenceBackend
from quota_lab.bench import gpu


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(gpu, "LAYERS", {"small": (24, 64)})
    monkeypatch.setattr(gpu, "HEADS", {"small": (4, 2, 64)})
    monkeypatch.setattr(gpu, "TOKENS", (1, 3))
    monkeypatch.setattr(gpu, "CACHED", (5,))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return gpu


def call_all(calls: Sequence[Any], copies: int) -> list[float]:
    for call in calls:
        results = [call(turn) for turn in range(copies)]
        assert all(torch.equal(result, results[0]) for result in results)
    return [2e-6 * (1 + index) for index in range(len(calls))]


def test_every_shape_becomes_a_line_of_the_table(script: Any) -> None:
    report = script.measure(ReferenceBackend(), torch.device("cpu"), call_all)
    assert [row.shape for row in report.rows] == [
        "small M=1 N=24 K=64",
        "small M=3 N=24 K=64",
        "small H=4 G=2 D=64 T=5",
    ]
    assert json.dumps(report.figures()).count('"ratio": 0.5') == 3
    assert "| linear | small M=3 N=24 K=64 | 2.0 | 4.0 | 0.50 |" in script.table(report).splitlines()


def test_nothing_is_timed_when_the_sums_are_wrong(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = ReferenceBackend()
    right = backend.sums
    monkeypatch.setattr(backend, "sums", lambda *arguments: right(*arguments) + 1)
    with pytest.raises(QuotaError, match="wrong sums"):
        script.measure(backend, torch.device("cpu"), lambda calls, copies: pytest.fail("timed all the same"))


def test_without_a_gpu_it_says_so_in_one_line(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    assert script.main() == 1
    assert capsys.readouterr().err.count("\n") == 1
