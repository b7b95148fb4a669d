"""A part of what `make fuzz` does: spoilt inputs give one line, never a traceback, a death or another answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 40


def test_spoilt_inputs_give_one_line(tmp_path: Path) -> None:
    out = tmp_path / "inputs.json"
    command = [sys.executable, ROOT / "fuzz" / "inputs.py", "--seed", "0", "--cases", "3000", "--seconds", str(SECONDS)]
    done = subprocess.run([*command, "--out", out], capture_output=True, text=True)
    result = json.loads(out.read_text())
    assert result["faults"] == [], done.stderr
    assert done.returncode == 0
    # All kinds, and some of every kind that should be refused was.
    assert len(result["counts"]) == 14
    assert all(found["refused"] for found in result["counts"].values())
    assert out.with_suffix(".md").read_text().startswith("| kind | cases | ok |")
    assert result["cases"] > 100


HANGING = """
import sys, time
sys.path.insert(0, "fuzz")
import inputs
def outcome(bench, kind, number, seed):
    while number == 1:
        {how}
    return "ok", ""
inputs.outcome, inputs.ASLEEP = outcome, 4
print(inputs.told(None, [("recipe", number) for number in range(3)], 0, 0.5))
"""


@pytest.mark.parametrize("how", ["pass", "time.sleep(1)"], ids=["working", "asleep"])
def test_a_case_that_hangs_is_the_last_of_its_child(how: str) -> None:
    told = subprocess.run([sys.executable, "-c", HANGING.format(how=how)], cwd=ROOT, capture_output=True, text=True)
    assert told.stdout == "[('ok', ''), ('time-out', '')]\n", told.stderr
