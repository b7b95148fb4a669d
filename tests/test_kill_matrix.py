"""What changes checkpoints, killed before every change of the disk and run again, writes what one left alone writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.killed import VARIANTS
from support.tiny_llava import make_model, processor

HERE = Path(__file__).parent

pytestmark = pytest.mark.slow


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


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_anywhere_it_goes_on_to_the_same_files(variant: str, source: Path, tmp_path: Path) -> None:
    rows = run("killed.py", source, tmp_path, variant)
    assert [row for row in rows if row[2]] == []
    # The last row is of a run that came to its end; the others meet every kind of change.
    *killed, (_, change, _) = rows
    assert change == ""
    met = {row[1].split()[0] for row in killed}
    assert met >= {"flock", "mkdir", "save_file", "fsync", "replace", "open", "unlink", "rename"}
    assert ("_exchange" in met) == ("rmdir" in met) == (variant != "empty")


def test_another_budget_comes_whole_or_not_at_all(quota_folder: Path, tmp_path: Path) -> None:
    rows = run("killed_rebudget.py", quota_folder, tmp_path)
    assert [row for row in rows if row[2]] == []
    *killed, (_, change, _) = rows
    assert change == ""
    assert {row[1].split()[0] for row in killed} >= {"link", "mkdir", "open", "fsync", "replace", "_exchange", "unlink"}
