"""The reference model as a subject, as small as it gets; and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quota.ablation import TABLES, Reference, Setting, SmolLM2
from quota.cli import main
from quota.errors import QuotaError


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as raised:
        main(["ablate", *map(str, arguments)])
    assert isinstance(raised.value.code, int)
    return raised.value.code


def test_the_reference_model_keeps_its_answers_at_8_bits() -> None:
    subject = Reference(questions=5)
    full = subject.measure(None, seed=1)
    assert {len(right) for right in full.values()} == {5} and len(full) == 6
    assert subject.score(full, full) == 100
    cache_alone = subject.measure(Setting(bits=16, kv_bits=8, samples=1), seed=1)
    assert subject.score(cache_alone, full) > 90


def test_the_seed_draws_the_questions_from_the_development_half() -> None:
    first, again, other = (Reference(3)._drawn(seed) for seed in (0, 0, 1))
    assert first == again != other
    with pytest.raises(QuotaError, match="500 questions"):
        Reference(501)


def test_a_ratio_of_perplexities() -> None:
    subject = SmolLM2(Path("a"), Path("b"))
    assert subject.score([2.0, 3.0], [2.0, 3.0]) == 1
    assert subject.score([2.1, 3.1], [2.0, 3.0]) == pytest.approx(1.10517, abs=1e-5)
    assert subject.size() == {"windows": 16, "prose": "a", "calibration": "b"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("modules", "--on", "nothing"), "reference and smollm2"),
        (("methods", "--on", "smollm2"), "--prose FILE and --calibration FILE"),
        (("modules", "--on", "smollm2", "--prose", "a", "--calibration", "b"), "says nothing on smollm2"),
    ],
    ids=["subject", "texts", "table"],
)
def test_mistakes_are_one_line(options: tuple[str, ...], message: str, tmp_path: Path, capsys) -> None:
    assert call(*options, "--cells", tmp_path) == 1
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said


def test_the_command_prints_markdown(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(TABLES, "kv-bits", {"full": None, "cache": Setting(bits=16, kv_bits=8, samples=1)})
    options = ("--questions", 2, "--seeds", 2, "--cells", tmp_path, "--json", tmp_path / "table.json")
    assert call("kv-bits", *options) == 0
    printed = capsys.readouterr()
    assert "| full | 100.0 | 100.0-100.0 | 100.0 100.0 |" in printed.out
    assert "4 of 4 outcomes measured" in printed.err
    assert [row["label"] for row in json.loads((tmp_path / "table.json").read_text())["rows"]] == ["full", "cache"]
