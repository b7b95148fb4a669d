"""What changes checkpoints, killed before every change of the disk and run again, writes what one left alone writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny_llava import make_model, processor

HERE = Path(__file__).parent

pytestmark = pytest.mark.slow

MET = {"flock", "mkdir", "save_file", "fsync", "replace", "open", "unlink", "rename"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kill") / "source"
    make_model(layers=2).save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


def run(script: str, *arguments: object) -> list[tuple[int, str, str]]:
    """Number, change and fault of each row that a matrix prints."""
    command = [sys.executable, HERE / "support" / script, *map(str, arguments)]
    found = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": found})
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_killed_anywhere_it_goes_on_to_the_same_files(source: Path, tmp_path: Path) -> None:
    """Over an old folder, exchanged at once or in two steps, and where none is. Up to the exchange all are one."""
    found = run("killed.py", source, tmp_path / "once", "old")
    assert faults(found) == []
    assert changes(found) >= MET | {"_exchange", "rmdir"}
    first = next(number for number, change, _ in found if change.startswith("_exchange"))
    assert faults(run("killed.py", source, tmp_path / "steps", "old in two steps", first)) == []
    # There a mark in the old folder is missing, so the rename comes earlier.
    empty = run("killed.py", source, tmp_path / "none", "empty", first - 2)
    assert faults(empty) == []
    assert "rename" in changes(empty) and not changes(empty) & {"_exchange", "rmdir"}


def faults(rows: list[tuple[int, str, str]]) -> list[tuple[int, str, str]]:
    """Rows with one. The last is of a run that came to its end."""
    assert rows[-1][1] == ""
    return [row for row in rows if row[2]]


def changes(rows: list[tuple[int, str, str]]) -> set[str]:
    return {change.split()[0] for _, change, _ in rows[:-1]}


def test_another_budget_comes_whole_or_not_at_all(quota_folder: Path, tmp_path: Path) -> None:
    rows = run("killed_rebudget.py", quota_folder, tmp_path)
    assert [row for row in rows if row[2]] == []
    *killed, (_, change, _) = rows
    assert change == ""
    assert {row[1].split()[0] for row in killed} >= {"link", "mkdir", "open", "fsync", "replace", "_exchange", "unlink"}
