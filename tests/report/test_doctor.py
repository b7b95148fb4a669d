"""The doctor finds what is there, and what is wrong with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from quota import ops
from quota.cli import main
from quota.models import FAMILIES
from quota.ops import machine
from quota.ops.interface import LinearWeight
from quota.ops.reference import ReferenceBackend
from quota.report.doctor import doctor_tables, examine


class Wrong(ReferenceBackend):
    """Off by one in a single sum."""

    def sums(self, values: Tensor, weight: LinearWeight) -> Tensor:
        sums = super().sums(values, weight)
        sums[-1, -1] += 1
        return sums


@pytest.fixture(autouse=True)
def nothing_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ops.ENVIRONMENT_VARIABLE, raising=False)


def test_it_lists_every_backend_and_the_one_taken() -> None:
    examination = examine()
    assert [backend.name for backend in examination.backends] == list(ops.NAMES)
    for backend in examination.backends:
        assert backend.why_not == ops.why_not(backend.name)
        assert backend.exact is (None if backend.why_not else True)
    assert examination.chosen["cpu"] == ops.backend().name
    assert examination.healthy
    assert examination.versions["torch"] == torch.__version__


def test_a_backend_with_a_wrong_sum_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quota.report.doctor.ops.backend", lambda name=None, device="cpu": Wrong())
    examination = examine()
    assert {backend.exact for backend in examination.backends if backend.why_not is None} == {False}
    assert not examination.healthy


def test_it_writes_what_it_shows(tmp_path: Path, capsys) -> None:
    file = tmp_path / "doctor.json"
    with pytest.raises(SystemExit) as raised:
        main(["doctor", "--json", str(file)])
    assert raised.value.code == 0
    figures = json.loads(file.read_text())
    assert set(figures) == {
        "versions",
        "processor",
        "instructions",
        "threads",
        "accelerators",
        "backends",
        "families",
        "forced",
        "chosen",
        "healthy",
    }
    assert figures["backends"][-1] == {"name": "reference", "why_not": None, "exact": True}
    shown = capsys.readouterr().out
    assert all(name in shown for name in ops.NAMES)


def test_it_names_what_a_family_leaves_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    name, *_ = FAMILIES
    monkeypatch.setitem(FAMILIES, name, replace(FAMILIES[name], left_to_torch=("OddNorm", "OddMLP")))
    examination = examine()
    *_, table = doctor_tables(examination)
    assert list(table.columns[-1].cells) == ["torch's: OddNorm, OddMLP"] + ["operators"] * (len(FAMILIES) - 1)
    assert examination.figures()["families"][0]["left_to_torch"] == ("OddNorm", "OddMLP")


def test_it_lists_every_supported_family() -> None:
    examination = examine()
    *_, table = doctor_tables(examination)
    assert list(table.columns[1].cells) == list(FAMILIES)
    assert [family["architecture"] for family in examination.figures()["families"]] == list(FAMILIES)


@pytest.mark.parametrize("name", ["abacus", "triton"])
def test_asking_for_one_that_cannot_run_is_said_and_ends_with_1(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(
        "quota.report.doctor.ops.why_not", lambda name: None if name == "reference" else "it is not there"
    )
    monkeypatch.setenv(ops.ENVIRONMENT_VARIABLE, name)
    with pytest.raises(SystemExit) as raised:
        main(["doctor"])
    assert raised.value.code == 1
    told = capsys.readouterr()
    assert name in told.out and "asked for" in told.out
    assert len([line for line in told.err.splitlines() if line.startswith("quota:")]) == 1


def test_the_table_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quota.report.doctor.ops.why_not", lambda name: None if name == "reference" else "no compiler")
    _, table, _ = doctor_tables(examine())
    assert list(table.columns[1].cells) == ["no: no compiler"] * 3 + ["yes"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            "model name\t: Abacus 9\nflags\t\t: avx2 sse amx_int8\n", ("Abacus 9", ["avx2", "amx_int8"]), id="x86"
        ),
        pytest.param("Features\t: fp i8mm asimddp\n", (None, ["asimddp", "i8mm"]), id="arm"),
    ],
)
def test_the_processor_is_read_from_the_system(
    text: str, expected: tuple[str | None, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    monkeypatch.setattr(machine, "_CPU_INFO", file)
    name, instructions = expected
    assert name is None or machine.processor() == name
    assert machine.instructions() == instructions


def test_a_system_that_tells_nothing_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CPU_INFO", tmp_path / "none")
    monkeypatch.setattr(machine, "_CACHES", tmp_path / "none")
    assert machine.instructions() == []
    assert machine.largest_cache() == machine.DEFAULT_CACHE


def test_the_largest_cache_is_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index, size in enumerate(["48K", "2048K", "105M", "512"]):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    monkeypatch.setattr(machine, "_CACHES", tmp_path)
    assert machine.largest_cache() == 105 << 20
