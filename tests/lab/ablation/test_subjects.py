"""The reference model as a subject, as small as it gets; and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.tiny_llava import make_model, make_samples, processor

from quota.cli import main
from quota.errors import QuotaError
from quota.prompts import build_inputs
from quota.samples import read_samples
from quota_lab.ablation import TABLES, Reference, Setting, SmolLM2
from quota_lab.ablation.token_errors import token_errors
from quota_lab.reference import suite_path
from quota_lab.study.halves import half

pytestmark = pytest.mark.slow


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as raised:
        main(["ablate", *map(str, arguments)])
    assert isinstance(raised.value.code, int)
    return raised.value.code


def test_the_reference_model_keeps_its_answers_at_8_bits() -> None:
    subject = Reference(questions=5)
    full = subject.measure(None, seed=1)
    assert {len(right) for right in full["right"].values()} == {5} and len(full["right"]) == 6
    assert subject.scores(full, full) == {"retention %": 100, "error, visual tokens": 0, "error, text tokens": 0}
    scores = subject.scores(
        subject.measure(Setting(weight_bits=16, activation_bits=16, kv_bits=8, samples=1), seed=1), full
    )
    assert scores["retention %"] > 90
    assert 0 < scores["error, visual tokens"] < 0.05 and 0 < scores["error, text tokens"] < 0.05


def test_errors_of_visual_and_text_tokens_are_told_apart() -> None:
    exact, changed = make_model(), make_model()
    inputs = [build_inputs(processor(), [sample]) for sample in make_samples(2)]
    assert token_errors(exact, changed, inputs) == {"visual": 0, "text": 0}
    with torch.no_grad():
        # Visual tokens come from the tower: only text enters the decoder changed.
        changed.get_input_embeddings().weight.mul_(1.1)
    errors = token_errors(exact, changed, inputs)
    assert errors["text"] > 0
    layers = changed.model.language_model.layers
    layers[-1].register_forward_hook(lambda module, args, output: output * 2)
    twice = token_errors(exact, changed, inputs)
    assert all(twice[kind] > errors[kind] for kind in errors)


def test_the_seed_draws_the_questions_from_the_development_half() -> None:
    first, again, other = (Reference(3)._drawn(seed) for seed in (0, 0, 1))
    assert first == again != other
    reported = {sample.image for sample in half(read_samples(suite_path()), "reported")}
    assert not reported & {sample.image for sample in first + other}
    with pytest.raises(QuotaError, match="ask no more than that of each"):
        Reference(1000)._drawn(0)


def test_a_ratio_of_perplexities() -> None:
    subject = SmolLM2(Path("a"), Path("b"))
    assert subject.scores([2.0, 3.0], [2.0, 3.0]) == {"perplexity ratio": 1}
    assert subject.scores([2.1, 3.1], [2.0, 3.0])["perplexity ratio"] == pytest.approx(1.10517, abs=1e-5)
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
    monkeypatch.setitem(
        TABLES, "kv-bits", {"full": None, "cache": Setting(weight_bits=16, activation_bits=16, kv_bits=8, samples=1)}
    )
    options = ("--questions", 2, "--seeds", 2, "--cells", tmp_path, "--json", tmp_path / "table.json")
    assert call("kv-bits", *options) == 0
    printed = capsys.readouterr()
    assert "| full | 100.0 (100.0-100.0) | 0.000 (0.000-0.000) | 0.000 (0.000-0.000) |" in printed.out
    assert "outcomes" in printed.err and "100%" in printed.err
    assert [row["label"] for row in json.loads((tmp_path / "table.json").read_text())["rows"]] == ["full", "cache"]
