"""The digest of the package's code."""

from __future__ import annotations

from pathlib import Path

import pytest

from quota_lab import digest as code


@pytest.fixture
def package(tmp_path: Path, monkeypatch) -> Path:
    (tmp_path / "cli").mkdir()
    for name in ("a.py", "kernel.cpp", "notes.md", "cli/b.py"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(code, "_ROOTS", (tmp_path,))
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "counts"),
    [("a.py", True), ("kernel.cpp", True), ("notes.md", False), ("cli/b.py", False)],
)
def test_only_code_that_may_decide_counts(changed: str, counts: bool, package: Path) -> None:
    digest = code.code_digest.__wrapped__
    before = digest(frozenset({"cli"}))
    (package / changed).write_text("other")
    assert (digest(frozenset({"cli"})) != before) == counts


def test_a_renamed_file_is_other_code(package: Path) -> None:
    digest = code.code_digest.__wrapped__
    before = digest()
    (package / "a.py").rename(package / "c.py")
    assert digest() != before
