"""Tables as pictures."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from quota.cli import main
from quota.errors import QuotaError
from quota_lab.study.gains import Gains
from quota_lab.study.picture import _together, lines, picture
from quota_lab.study.report import read_table


def row(name: str, cost: float, retention: float | None, seconds: float | None = None) -> dict[str, Any]:
    interval = None if retention is None else [retention - 0.01, retention + 0.01]
    facts = {"retention": retention, "interval": interval, "spread": interval, "prefill_seconds": seconds}
    return {"name": name, "cost": cost} | facts


def table(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"title": "A table", "rows": [row("full precision", 1, 1.0), row("quantised only", 1, 0.99), *rows]}


CURVES = table(row("QUOTA, 50%", 0.5, 0.99), row("QUOTA, 25%", 0.24, 0.98), row("other, 50%", 0.5, 0.9))
TIMED = table(row("QUOTA, 50%", 0.5, 0.99, 0.02), row("QUOTA, 25%", 0.24, 0.98, 0.01))
DOTS = table(row("tau 1", 0.5, 0.9), row("tau 2", 0.5, None))


def test_a_line_has_its_budgets_in_order() -> None:
    (line,) = lines(CURVES)
    assert (line.name, line.cost, line.kept) == ("QUOTA", [24, 50], [98, 99])
    assert line.low == pytest.approx([97, 98]) and line.high == pytest.approx([99, 100])
    assert lines(DOTS) == []


def size(tables: list[tuple[str, dict[str, Any]]]) -> tuple[int, int]:
    return Image.open(io.BytesIO(picture(tables))).size


def test_time_is_a_panel_of_its_own_and_tables_stand_beside_each_other() -> None:
    assert size([("", DOTS)])[0] == size([("", CURVES)])[0] == 900
    assert size([("", TIMED)])[0] == 1300
    assert size([("one", TIMED), ("two", CURVES)])[0] == 1950
    assert size([("", CURVES), ("", CURVES)])[0] == 1300


def test_tables_of_one_name_share_a_panel() -> None:
    keep = table(row("QUOTA, keep 30%", 0.6, 0.99), row("published, keep 30%", 0.6, 0.9))
    assert size([("one", CURVES), ("one", keep)])[0] == 900
    [(name, both)] = _together([("one", CURVES), ("one", keep)])
    assert (name, both["title"]) == ("one", "")
    names = [each["name"] for each in both["rows"]]
    assert len(names) == len(set(names)) == 2 + 3 + 2
    [ours] = lines(both)
    assert (ours.name, ours.cost) == ("QUOTA", [24, 50, 60])


def bench(*rows: tuple[str, str, float]) -> dict[str, Any]:
    found = [{"job": job, "shape": shape, "ratio": ratio} for job, shape, ratio in rows]
    return {"device": "a processor", "threads": 2, "rows": found}


JOBS = ("ttft", "decode", "memory")
VARIANTS = ("realistic quantized", "realistic quota, keep 30%", "realistic pruned, keep 30%", "reference quantized")
BENCH = bench(*((job, shape, 2.0 + at) for job in JOBS for at, shape in enumerate(VARIANTS)))


def test_gains_are_the_realistic_model_s_and_a_panel_more(tmp_path: Path) -> None:
    (tmp_path / "e2e.json").write_text(json.dumps(BENCH))
    gains = Gains.read(tmp_path / "e2e.json")
    assert gains.shares["ttft"] == {"quantised only": 50, "QUOTA": pytest.approx(100 / 3)}
    assert gains.device == "a processor, 2 threads"
    assert Image.open(io.BytesIO(picture([("", CURVES)], gains))).width == 1300


@pytest.mark.parametrize(
    "figures",
    [{}, {"rows": 3}, bench(), bench(("ttft", "realistic quantized", 2.0)), bench(("ttft", "realistic quota", 0.0))],
    ids=["nothing", "no rows", "empty", "a part", "no ratio"],
)
def test_what_is_no_benchmark_of_it_is_one_line(figures: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "e2e.json").write_text(json.dumps(figures))
    with pytest.raises(QuotaError, match=r"e2e\.json is no benchmark of the realistic model"):
        Gains.read(tmp_path / "e2e.json")


def test_the_command_draws_files(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text(json.dumps(CURVES))
    with pytest.raises(SystemExit) as ended:
        main(["curves", f"reference={tmp_path / 'table.json'}", "-o", str(tmp_path / "curves.png")])
    assert ended.value.code == 0
    assert Image.open(tmp_path / "curves.png").width == 900


@pytest.mark.parametrize("text", ["{}", '{"title": "t", "rows": [{"name": "x"}]}', "[]", "no JSON"])
def test_what_is_no_table_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text(text)
    with pytest.raises(QuotaError, match=r"table\.json"):
        read_table(tmp_path / "table.json")
