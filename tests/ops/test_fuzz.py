"""The C++ kernels under AddressSanitizer and UBSan, called at random by `fuzz/kernels.cpp`; `make fuzz` goes on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CALLS = 1200


@pytest.mark.skipif(shutil.which("g++") is None, reason="the sanitizers come with g++, which is not installed")
def test_random_calls_are_clean_under_sanitizers(tmp_path: Path) -> None:
    program = tmp_path / "fuzz"
    subprocess.run([sys.executable, ROOT / "fuzz" / "build.py", program], check=True, capture_output=True)
    done = subprocess.run([program, "0", str(CALLS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{CALLS} calls")
