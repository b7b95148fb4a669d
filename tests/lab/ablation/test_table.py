"""Tables: what is measured, what is kept, what is concluded."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quota.errors import QuotaError
from quota_lab.ablation import TABLES, Setting, ablate, cells
from quota_lab.ablation.markdown import markdown
from quota_lab.ablation.table import mean_interval


class Arithmetic:
    """A subject whose outcomes are sums, so that every score is known; it counts what it measures."""

    name = "arithmetic"
    tables = ("kv-bits", "methods")

    def __init__(self, fails_at: int | None = None) -> None:
        self.measured: list[tuple[Setting | None, int]] = []
        self.fails_at = fails_at

    def measure(self, setting: Setting | None, seed: int) -> list[int]:
        if len(self.measured) == self.fails_at:
            raise KeyboardInterrupt
        self.measured.append((setting, seed))
        return [100 if setting is None else setting.kv_bits, seed]

    def scores(self, outcome: Any, full: Any) -> dict[str, float]:
        return {"points": full[0] - outcome[0] + outcome[1], "share %": outcome[0]}

    def size(self) -> dict[str, Any]:
        return {"digits": 2}


def test_scores_are_of_pairs_of_one_seed(tmp_path: Path) -> None:
    ablation = ablate("kv-bits", Arithmetic(), 3, tmp_path)
    rows = {row.label: row.scores for row in ablation.rows}
    assert rows["W4A4KV4"] == rows["W16A16KV4"] == {"points": [96, 97, 98], "share %": [4, 4, 4]}
    assert rows["W4A4KV2"]["points"] == [98, 99, 100]
    assert "| W4A4KV4 | 97.000 (94.516-99.484) | 4.0 (4.0-4.0) |" in markdown(ablation)
    first = json.loads(json.dumps(ablation.figures()))["rows"][0]
    assert first["label"] == "W4A4KV16" and first["scores"]["points"]["by_seed"] == [84, 85, 86]


def test_an_interrupted_table_goes_on_and_tables_share_outcomes(tmp_path: Path) -> None:
    interrupted, rest = Arithmetic(fails_at=7), Arithmetic()
    with pytest.raises(KeyboardInterrupt):
        ablate("kv-bits", interrupted, 2, tmp_path)
    ablation = ablate("kv-bits", rest, 2, tmp_path)
    assert not set(interrupted.measured) & set(rest.measured)
    assert len(interrupted.measured) + len(rest.measured) == 2 * (1 + len(TABLES["kv-bits"]))
    assert ablation.rows == ablate("kv-bits", Arithmetic(), 2, tmp_path / "anew").rows
    shared = Arithmetic()
    ablate("methods", shared, 2, tmp_path)
    assert Setting() not in {setting for setting, _ in shared.measured}


def test_outcomes_of_other_code_are_measured_anew(tmp_path: Path, monkeypatch) -> None:
    ablate("methods", Arithmetic(), 2, tmp_path)
    monkeypatch.setattr(cells, "code_digest", lambda outside: "another")
    anew = Arithmetic()
    ablate("methods", anew, 2, tmp_path)
    assert len(anew.measured) == 2 * (1 + len(TABLES["methods"]))


def test_progress_counts_what_is_left(tmp_path: Path) -> None:
    said: list[tuple[str, int, int]] = []
    ablate("methods", Arithmetic(), 2, tmp_path, lambda *step: said.append(step))
    total = 2 * (1 + len(TABLES["methods"]))
    assert said == [("outcomes", done, total) for done in range(total + 1)]
    said.clear()
    ablate("methods", Arithmetic(), 2, tmp_path, lambda *step: said.append(step))
    assert said == [("outcomes", total, total)]


def test_a_damaged_outcome_is_named(tmp_path: Path) -> None:
    ablate("methods", Arithmetic(), 2, tmp_path)
    broken = next(tmp_path.iterdir())
    broken.write_text("{")
    with pytest.raises(QuotaError, match=broken.name):
        ablate("methods", Arithmetic(), 2, tmp_path)


@pytest.mark.parametrize(
    ("table", "seeds", "message"),
    [("magic", 3, "no table 'magic'"), ("modules", 3, "says nothing on arithmetic"), ("methods", 1, "2 to 10 seeds")],
    ids=["unknown", "senseless", "one seed"],
)
def test_refused(table: str, seeds: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(QuotaError, match=message):
        ablate(table, Arithmetic(), seeds, tmp_path)


def test_95_of_100_intervals_hold_the_true_mean() -> None:
    chance = random.Random(0)
    intervals = [mean_interval([chance.gauss(5, 2) for _ in range(3)]) for _ in range(5000)]
    assert sum(low <= 5 <= high for low, high in intervals) / 5000 == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("table", TABLES)
def test_settings_of_a_table_differ_and_are_schemes(table: str) -> None:
    settings = list(TABLES[table].values())
    assert len(set(settings)) == len(settings)
    schemes: list[Callable[[], Any]] = [setting.scheme for setting in settings if setting is not None]
    assert all(scheme() for scheme in schemes)
