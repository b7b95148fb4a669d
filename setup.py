"""Builds the CPU kernels, `quota/ops/cpu/src`, into one plain shared library; everything else is in pyproject.toml.

Files that end in the name of an instruction set are compiled for it, all others for any processor of the kind; the
library chooses when it runs. It knows nothing of Python, so one wheel serves every Python 3 of a platform. On a machine
without a compiler, or of another kind than x86-64, the install goes on without the library; `quota doctor` says so.
"""

from __future__ import annotations

import platform
import runpy
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCES = Path("quota/ops/cpu/src")
# Not fused: float operations are rounded one by one, as those of the reference.
FLAGS = ["-std=c++17", "-O3", "-g0", "-fopenmp", "-Wno-psabi", "-ffp-contract=off"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"]
INSTRUCTION_SETS = {
    "avx2": AVX2,
    "avx512": AVX512,
    "bf16": [*AVX512, "-mavx512bf16"],
    "amx": [*AVX512, "-mamx-tile", "-mamx-int8", "-mamx-bf16"],
}


class BuildKernels(build_ext):
    """`build_ext` with flags by file, and a file name that does not depend on Python's version."""

    def build_extension(self, ext: Extension) -> None:
        objects = []
        sources = runpy.run_path(str(SOURCES.with_name("sources.py")))["digest"](SOURCES)
        for source in ext.sources:
            special = INSTRUCTION_SETS.get(source.removesuffix(".cpp").rpartition("_")[2], [])
            objects += self.compiler.compile(
                [source],
                self.build_temp,
                extra_postargs=[*FLAGS, *special, f'-DQUOTA_SOURCES="{sources}"'],
                depends=ext.depends,
            )
        target = self.get_ext_fullpath(ext.name)
        self.compiler.link_shared_object(objects, target, extra_postargs=["-fopenmp"], target_lang="c++")

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"


class PlatformWheel(bdist_wheel):
    """`bdist_wheel` for any Python 3 of this platform: py3-none-PLATFORM."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


KERNELS = Extension(
    "quota.ops.cpu.libquota_cpu",
    sources=sorted(map(str, SOURCES.glob("*.cpp"))),
    depends=sorted(map(str, SOURCES.glob("*.h"))),
    language="c++",
    optional=True,
)

# fuzz/build.py takes the flags from here.
if __name__ == "__main__":
    setup(
        cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
        ext_modules=[KERNELS] if platform.machine() in ("x86_64", "AMD64") else [],
    )
