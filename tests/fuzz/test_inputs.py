"""A part of what `make fuzz` does: spoilt inputs give one line, never a traceback, a death or another answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120


def test_spoilt_inputs_give_one_line(tmp_path: Path) -> None:
    out = tmp_path / "inputs.json"
    command = [sys.executable, ROOT / "fuzz" / "inputs.py", "--seed", "0", "--cases", "3000", "--seconds", str(SECONDS)]
    done = subprocess.run([*command, "--out", out], capture_output=True, text=True)
    result = json.loads(out.read_text())
    assert result["faults"] == [], done.stderr
    assert done.returncode == 0
    # All kinds, and some of every kind that should be refused was.
    assert len(result["counts"]) == 13
    assert all(found["refused"] for found in result["counts"].values())
    assert out.with_suffix(".md").read_text().startswith("| kind | cases | ok |")
    assert result["cases"] > 100
