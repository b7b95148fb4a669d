"""Compile the kernels and `fuzz/kernels.cpp` under AddressSanitizer and UBSan: `python fuzz/build.py OUT`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from setup import INSTRUCTION_SETS  # noqa: E402

SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]
FLAGS = ["-std=c++17", "-fopenmp", "-Wno-psabi", *SANITIZE]


def build(out: Path, compiler: str = "g++") -> None:
    """Write the fuzzer to `out`; subprocess.CalledProcessError if it does not compile."""
    sources = [*sorted((ROOT / "quota/ops/cpu/src").glob("*.cpp")), ROOT / "fuzz/kernels.cpp"]
    with tempfile.TemporaryDirectory() as folder:
        objects = [str(Path(folder) / f"{source.stem}.o") for source in sources]
        for source, target in zip(sources, objects, strict=True):
            special = INSTRUCTION_SETS.get(source.stem.rpartition("_")[2], [])
            subprocess.run([compiler, *FLAGS, *special, "-c", str(source), "-o", target], check=True)
        subprocess.run([compiler, *FLAGS, *objects, "-o", str(out)], check=True)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
