"""The demo from end to end, with a tiny random model in the place of the shipped one (minutes there, seconds here)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from support.tiny_llava import LAYERS, VISUAL_TOKENS, make_samples

from quota.cli import main
from quota.pruning.recipe import PruningRecipe
from quota_lab import reference

pytestmark = pytest.mark.slow

VARIANTS = ["full", "quantized", "pruned", "quota"]


@pytest.fixture
def tiny_reference(monkeypatch: pytest.MonkeyPatch, full_folder: Path, suite_folder: Path) -> None:
    monkeypatch.setattr(reference, "model_path", lambda: full_folder)
    monkeypatch.setattr(reference, "suite_path", lambda: suite_folder)
    monkeypatch.setattr(reference, "calibration_samples", lambda count, seed: make_samples(6, seed))


@pytest.mark.usefixtures("tiny_reference")
def test_demo_compares_four_variants(tmp_path: Path, capsys) -> None:
    figures_file = tmp_path / "demo.json"
    with pytest.raises(SystemExit) as raised:
        main(["demo", "--out", str(tmp_path / "demo"), "--json", str(figures_file), "--questions", "2"])
    assert raised.value.code == 0

    figures = json.loads(figures_file.read_text())
    assert set(figures) == {"variants", "recipe", "backend", "seconds"}
    assert list(figures["variants"]) == VARIANTS
    full, quantized, pruned, quota = figures["variants"].values()

    # The suite is made so that the full model is right on all of "easy" and on every other one of "hard".
    assert full["accuracy"] == {"easy": 1.0, "hard": 0.5}
    assert full["retention"] == 1.0 and full["retention_interval"] == [1.0, 1.0]

    recipe = PruningRecipe.load(tmp_path / "demo" / "checkpoint" / "recipe.json")
    assert figures["recipe"] == recipe.model_dump(mode="json")
    schedule = recipe.tokens_per_layer(VISUAL_TOKENS, LAYERS)
    assert quota["visual_tokens_per_layer"] == pruned["visual_tokens_per_layer"] == schedule
    assert quantized["visual_tokens_per_layer"] == full["visual_tokens_per_layer"] == [VISUAL_TOKENS] * LAYERS
    assert quota["kv_bytes"] < quantized["kv_bytes"] < pruned["kv_bytes"] < full["kv_bytes"]
    recipe_size = (tmp_path / "demo" / "checkpoint" / "recipe.json").stat().st_size
    assert quota["disk_bytes"] - quantized["disk_bytes"] == recipe_size == pruned["disk_bytes"] - full["disk_bytes"]

    shown = capsys.readouterr().out
    for name in ("precision", "quantised", "pruned", "QUOTA", "retention", "majority"):
        assert name in shown
    with Image.open(tmp_path / "demo" / "kept_tokens.png") as picture:
        # A panel for the picture and one a candidate layer.
        assert picture.width > 216 * (1 + len(recipe.layers))


@pytest.mark.usefixtures("tiny_reference")
def test_demo_refuses_a_folder_of_somebody_else(tmp_path: Path, capsys) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "mine.txt").write_text("precious")
    with pytest.raises(SystemExit) as raised:
        main(["demo", "--out", str(tmp_path)])
    assert raised.value.code == 1
    assert "not empty" in capsys.readouterr().err
    assert (tmp_path / "checkpoint" / "mine.txt").read_text() == "precious"
