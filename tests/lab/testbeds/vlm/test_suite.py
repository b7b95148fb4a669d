"""The suite by command, the card, and what the commands say when parts are missing."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from support.tiny_testbed import make_model, make_network
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

from quota.errors import QuotaError
from quota.prompts import build_inputs
from quota.samples import fingerprint, read_samples
from quota_lab.cli.testbed_vlm import vlm
from quota_lab.testbeds.vlm import build, card, weights
from quota_lab.testbeds.vlm.parts import check_digest
from quota_lab.testbeds.vlm.photos import Photos
from quota_lab.testbeds.vlm.questions import TASKS
from quota_lab.testbeds.vlm.suite import write_suite


class TestSuite:
    def test_by_command(self, folder: Path, tmp_path: Path) -> None:
        outcome = CliRunner().invoke(
            vlm, ["suite", str(tmp_path / "suite"), "--photos", str(folder), "--questions", "6"]
        )
        assert outcome.exit_code == 0, outcome.output
        samples = read_samples(tmp_path / "suite")
        assert Counter(sample.task for sample in samples) == dict.fromkeys(TASKS, 6)

    def test_a_seed_is_a_suite(self, photos: Photos, tmp_path: Path) -> None:
        for name, seed in (("one", 0), ("again", 0), ("other", 1)):
            write_suite(tmp_path / name, photos, 3, seed)
        one, again, other = (fingerprint(read_samples(tmp_path / name)) for name in ("one", "again", "other"))
        assert one == again != other


class TestBuild:
    def test_a_stock_checkpoint(self, photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(build, "load_parts", make_model)
        weights.write(weights.trained(make_network()[0]), tmp_path / "adapter.safetensors")
        build.build(tmp_path / "model", tmp_path / "adapter.safetensors")
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
        processor = AutoProcessor.from_pretrained(tmp_path / "model")
        write_suite(tmp_path / "suite", photos, 1)
        inputs = build_inputs(processor, read_samples(tmp_path / "suite"))
        assert (inputs["input_ids"] == model.config.image_token_id).sum(1).tolist() == [256] * len(inputs["input_ids"])
        assert model.generate(**inputs, max_new_tokens=2).shape[0] == len(TASKS)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
    def test_in_the_type_asked_for(self, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(build, "load_parts", make_model)
        weights.write(weights.trained(make_network()[0]), tmp_path / "adapter.safetensors")
        build.build(tmp_path / "model", tmp_path / "adapter.safetensors", dtype)
        assert AutoModelForImageTextToText.from_pretrained(tmp_path / "model").dtype is dtype

    def test_a_part_of_another_version(self, tmp_path: Path) -> None:
        (tmp_path / "part").write_bytes(b"other")
        with pytest.raises(QuotaError, match="another version"):
            check_digest(tmp_path / "part", "0" * 64)

    def test_the_card_shows_scores(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(card, "SCORES", tmp_path / "scores.json")
        assert "Not measured yet" in card.card()
        figures = {"accuracy": {"reading": 0.9}, "majority": {"reading": 0.1}, "average": 0.9, "interval": [0.8, 1.0]}
        (tmp_path / "scores.json").write_text(json.dumps(figures))
        assert "| reading | 90.0 | 10.0 |" in card.card()
