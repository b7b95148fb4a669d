"""The C++ kernels called at random by `fuzz/kernels.cpp`, as each variant of `fuzz/build.py`; `make fuzz` goes on."""

from __future__ import annotations

import platform
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def links(compiler: str, folder: Path) -> bool:
    """Whether it is here, with the libraries that come beside it."""
    if shutil.which(compiler) is None:
        return False
    command = [compiler, "-fopenmp", "-fsanitize=address,undefined", "-x", "c++", "-", "-o", folder / "empty"]
    return subprocess.run(command, input=b"int main() {}", capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("variant", "compiler", "calls"),
    [
        *(("sanitized", "g++", 400), ("clang", "clang++", 400), ("not-inlined", "g++", 1500)),
        *(("tiles", "g++", 300), ("tiles-bare", "g++", 1500)),
    ],
)
def test_random_calls_are_clean(variant: str, compiler: str, calls: int, tmp_path: Path) -> None:
    if not links(compiler, tmp_path):
        pytest.skip(f"{compiler} is not installed, or without sanitizers and OpenMP")
    program = tmp_path / "fuzz"
    command = [sys.executable, ROOT / "fuzz" / "build.py", program, variant]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program, "0", str(calls)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{calls} calls")


needs_gcc = pytest.mark.skipif(
    shutil.which("g++") is None or platform.machine() != "x86_64", reason="g++ for x86-64 is not installed"
)


def assembly(file: str, folder: Path, *flags: str) -> list[str]:
    """Lines of what GCC makes of a file with the product's flags and these."""
    setup, out = runpy.run_path(str(ROOT / "setup.py")), folder / "kernels.s"
    special = setup["INSTRUCTION_SETS"][file.removesuffix(".cpp").rpartition("_")[2]]
    command = ["g++", *setup["FLAGS"], *special, *flags, "-S", ROOT / setup["SOURCES"] / file, "-o", out]
    subprocess.run(command, check=True)
    return out.read_text().splitlines()


@needs_gcc
@pytest.mark.parametrize("file", ["linear_amx.cpp", "attention_amx.cpp"])
def test_the_layout_of_tiles_is_a_constant(file: str, tmp_path: Path) -> None:
    """Of a local one GCC 12 drops what it believes nobody reads; few machines have the tiles to find that out."""
    [load] = [line for line in assembly(file, tmp_path, "-O1", "-fno-inline") if "ldtilecfg" in line]
    assert load.endswith("(%rip)")


@needs_gcc
@pytest.mark.parametrize("file", ["linear_avx2.cpp", "linear_avx512.cpp", "linear_amx.cpp"])
def test_the_rows_behind_a_panel_are_fetched(file: str, tmp_path: Path) -> None:
    """GCC drops calls of a function that does nothing else; no result tells."""
    assert any("prefetcht1" in line for line in assembly(file, tmp_path))
