"""`quota bench serve` against a real server. `make test-serve` runs this; it needs packages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.served import served_folder

from quota.cli import main

pytest.importorskip("fastapi", reason="run by `make test-serve`")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(quota_folder: Path) -> Iterator[str]:
    with served_folder(quota_folder) as (found, _):
        yield found


def bench(*arguments: object) -> int | None:
    with pytest.raises(SystemExit) as raised:
        main(["bench", "serve", *map(str, arguments)])
    assert not isinstance(raised.value.code, str)
    return raised.value.code


def test_a_load_is_answered_and_measured(address: str, suite_folder: Path, tmp_path: Path, capsys) -> None:
    figures = tmp_path / "figures.json"
    options = ("--requests", 8, "--rate", 4, "--max-tokens", 6, "--suite", suite_folder, "--json", figures)
    assert bench(address, *options) == 0
    assert "8 requests, 4 a second" in capsys.readouterr().out
    [server] = json.loads(figures.read_text())["servers"]
    assert (server["model"], server["failures"]) == ("compressed", 0)
    assert 0 < server["first_token"] <= server["first_token_95"]
    assert server["tokens_per_second"] > server["requests_per_second"] > 0


def test_a_soak_loses_nothing(address: str, suite_folder: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    assert bench(address, "--soak", 66, "--suite", suite_folder, "--json", figures) == 0
    [soak] = json.loads(figures.read_text())["soaks"]
    assert soak["failures"] == []
    assert soak["memory_before"] > 0
    assert len(soak["kinds"]) == 11
    assert sum(count for ends in soak["kinds"].values() for count in ends.values()) == 66
    right = {"answered"}, {"answered"}, {"left"}, {"left"}
    assert [set(ends) for ends in soak["kinds"].values()] == [*right, *[{"400"}] * 7]
