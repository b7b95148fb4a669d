"""Compile the kernels and the fuzzer: `python fuzz/build.py OUT [VARIANT]`.

sanitized    under AddressSanitizer and UBSan
clang        the same by another compiler
not-inlined  every function for itself, without sanitizers, which would hide stores that the compiler drops
tiles        AMX in plain C++, on every machine with AVX512-VNNI, sanitized; tiles-bare the same without sanitizers
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from setup import INSTRUCTION_SETS  # noqa: E402

SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
FLAGS = ["-std=c++17", "-fopenmp", "-Wno-psabi", "-ffp-contract=off", "-g", "-O1"]
TILES = ["-DQUOTA_PLAIN_TILES"]
# Name -> compiler and flags besides.
VARIANTS = {
    "sanitized": ("g++", SANITIZE),
    "clang": ("clang++", SANITIZE),
    "not-inlined": ("g++", ["-fno-inline"]),
    "tiles": ("g++", [*SANITIZE, *TILES]),
    "tiles-bare": ("g++", TILES),
}


def build(out: Path, variant: str = "sanitized") -> None:
    """Write the fuzzer to `out`; subprocess.CalledProcessError if it does not compile."""
    compiler, special = VARIANTS[variant]
    flags = [*FLAGS, *special]
    sources = [*sorted((ROOT / "quota/ops/cpu/src").glob("*.cpp")), *sorted((ROOT / "fuzz").glob("*.cpp"))]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        objects = [str(Path(folder) / f"{number}.o") for number in range(len(sources))]

        def compile_one(source: Path, target: str) -> None:
            instructions = INSTRUCTION_SETS.get(source.stem.rpartition("_")[2], [])
            subprocess.run([compiler, *flags, *instructions, "-c", str(source), "-o", target], check=True)

        list(pool.map(compile_one, sources, objects))
        subprocess.run([compiler, *flags, *objects, "-o", str(out)], check=True)


if __name__ == "__main__":
    build(Path(sys.argv[1]), *sys.argv[2:])
