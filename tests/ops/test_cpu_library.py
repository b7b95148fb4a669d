"""Finding the compiled kernels, choosing among them, and building them where that is possible."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.instruction_sets import needs_library, using

from quota.errors import QuotaError
from quota.ops.cpu import CpuBackend, library
from quota.ops.cpu.sources import digest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fresh() -> Iterator[None]:
    """Load again in the test, and once more after it."""
    library._load.cache_clear()
    yield
    library._load.cache_clear()


@needs_library
def test_it_runs_on_the_best_instruction_set_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(library.ENVIRONMENT_VARIABLE, raising=False)
    assert CpuBackend().why_not() is None
    assert library.ISAS[library.isa()] == library.best_isa()
    with using("portable"):
        assert library.isa() == 0


@needs_library
def test_an_instruction_set_that_is_unknown_or_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with using("abacus"), pytest.raises(QuotaError, match=r"QUOTA_CPU_ISA=abacus.*portable, avx2, avx512, amx"):
        CpuBackend().why_not()

    class Old:
        def quota_best_isa(self) -> int:
            return 1

    monkeypatch.setattr(library, "library", Old)
    with using("amx"), pytest.raises(QuotaError, match="QUOTA_CPU_ISA=amx: this machine has avx2 at most"):
        library.isa()


@pytest.mark.usefixtures("fresh")
def test_without_the_library_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "_FILE", tmp_path / "libquota_cpu.so")
    assert "not built: " in str(CpuBackend().why_not())
    with pytest.raises(QuotaError, match="not built: "):
        library.library()


@needs_library
@pytest.mark.usefixtures("fresh")
def test_a_library_of_other_sources_is_not_called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert library.why_not() is None
    (tmp_path / "linear.cpp").write_text("// has moved on")
    monkeypatch.setattr(library, "digest", lambda: digest(tmp_path))
    library._load.cache_clear()
    assert "comes from other sources" in str(CpuBackend().why_not())


@needs_library
@pytest.mark.usefixtures("fresh")
def test_without_its_sources_beside_it_a_library_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert digest(tmp_path) is None
    monkeypatch.setattr(library, "digest", lambda: None)
    assert CpuBackend().why_not() is None


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("content", [b"", b"no library"], ids=["empty", "text"])
def test_a_damaged_library_is_not_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "libquota_cpu.so").write_bytes(content)
    monkeypatch.setattr(library, "_FILE", tmp_path / "libquota_cpu.so")
    assert "cannot be loaded" in str(CpuBackend().why_not())


def test_a_machine_without_a_compiler_builds_the_rest(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path / "lib", "--build-temp", tmp_path]
    missing = str(tmp_path / "no-compiler")
    result = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"CC": missing, "CXX": missing}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "libquota_cpu" in result.stdout + result.stderr
    assert not list(tmp_path.rglob("*.so"))
