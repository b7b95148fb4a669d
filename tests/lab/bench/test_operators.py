"""The operators' benchmark: that it times what it says, on shapes too small to say anything about speed."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from quota import ops
from quota.cli import main
from quota.ops.reference import ReferenceBackend
from quota_lab.bench import bench_operators, operators
from quota_lab.bench.report import Report, Row
from quota_lab.bench.timing import interleaved

KEYS = {"job", "shape", "backend", "value", "baseline", "baseline_value", "ratio"}
SMALL = {
    "linear": [(1, 64, 64), (3, 64, 128)],
    "attention": [(4, 2, 64, 32)],
    "turns": 2,
    "cache": 1 << 14,
}


def test_calls_take_turns_and_the_median_leaves_out_the_odd_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seen = [0.0], []
    monkeypatch.setattr("quota_lab.bench.timing.time.perf_counter", lambda: clock[0])

    def call(name: str, seconds: float):
        def run(turn: int) -> None:
            seen.append((name, turn))
            # Warm-up is slow, and so is one of the turns.
            clock[0] += 100.0 if turn in (0, 3) else seconds

        return run

    assert interleaved([call("a", 1.0), call("b", 2.0)], turns=5, warm_up=1) == [1.0, 2.0]
    assert seen == [(name, turn) for turn in range(6) for name in "ab"]


@pytest.mark.parametrize(("job", "ratio"), [("linear", 0.5), ("ttft", 0.5), ("memory", 0.5), ("decode", 2.0)])
def test_a_ratio_above_one_is_better(job, ratio: float) -> None:
    assert Row(job, "", "cpu", 4.0, "", 2.0).ratio == ratio


def test_every_backend_that_runs_has_a_row_for_every_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ops.ENVIRONMENT_VARIABLE, raising=False)
    fast = [name for name in ops.order("cpu") if ops.why_not(name) is None and name != "reference"]
    report = bench_operators(**SMALL)
    expected = [
        (job, shape, name)
        for job, shape in [
            ("linear", "M=1 N=64 K=64 cold"),
            ("linear", "M=3 N=64 K=128 cold"),
            ("decode_attention", "H=4 G=2 D=64 T=32 cold"),
        ]
        for name in fast or ["reference"]
    ]
    assert [(row.job, row.shape, row.backend) for row in report.rows] == expected
    assert all(row.value > 0 and row.baseline_value > 0 for row in report.rows)


def test_the_command_writes_the_figures_of_the_backend_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(operators.bench_operators, "__defaults__", (*SMALL.values(), lambda *progress: None))
    file = tmp_path / "ops.json"
    with pytest.raises(SystemExit) as raised:
        main(["bench", "ops", "--backend", "reference", "--json", str(file)])
    assert raised.value.code == 0
    figures = json.loads(file.read_text())
    assert set(figures) == {"device", "threads", "others", "rows"}
    assert figures["threads"] == torch.get_num_threads()
    assert all(set(row) == KEYS for row in figures["rows"])
    assert {row["backend"] for row in figures["rows"]} == {"reference"}
    assert {row["baseline"] for row in figures["rows"]} == {"torch bf16", "torch fp32 SDPA"}
    assert "decode_attention" in capsys.readouterr().out


def test_consecutive_turns_meet_other_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Noting(ReferenceBackend):
        def linear(self, x, weights):
            seen.append(weights[0].packed.data_ptr())
            return super().linear(x, weights)

    nbytes = operators.random_weight(64, 64).packed.nbytes
    operators.linear_rows([Noting()], 1, 64, 64, turns=3, cache=2 * nbytes)
    # Two of them fill the cache, so there are three.
    assert len(set(seen)) == 3
    assert all(first != second for first, second in pairwise(seen))


def test_the_attention_baseline_is_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 1, 16, generator=generator)
    keys, values = (torch.randn(1, 2, 9, 16, generator=generator) for _ in range(2))
    expected = functional.scaled_dot_product_attention(query, keys, values, enable_gqa=True)
    torch.testing.assert_close(operators._sdpa(query, [(keys, values)], 0), expected)


def test_a_report_names_the_machine() -> None:
    assert Report(device="abacus", threads=1).figures() == {
        "device": "abacus",
        "threads": 1,
        "others": None,
        "rows": [],
    }
