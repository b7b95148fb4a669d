"""An explanation shows exactly what the Pruner kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from support.tiny_llava import make_samples

import quota
from quota.checkpoint.named import load_model
from quota.errors import QuotaError
from quota.prompts import answer, build_inputs, generate
from quota.pruning.recipe import PruningRecipe
from quota.report.explain import draw_explanation, explain


def test_kept_tokens_are_those_of_the_trace(quota_folder: Path, tmp_path: Path) -> None:
    model, processor, _ = load_model(str(quota_folder))
    recipe = PruningRecipe.load(quota_folder / "recipe.json")
    [sample] = make_samples(1, seed=5)
    explanation = explain(model, processor, sample, size=64)
    with quota.record(model) as trace:
        generate(model, processor, build_inputs(processor, [sample]))
    assert explanation.kept == {layer: kept[0].tolist() for layer, kept in trace.kept.items()}
    assert [len(kept) for kept in explanation.kept.values()] == recipe.counts(16)
    assert explanation.answer == answer(model, processor, sample)
    assert len(explanation.panels) == 1 + len(recipe.layers)

    file = tmp_path / "kept.png"
    draw_explanation(sample.question, explanation, file)
    with Image.open(file) as drawn:
        assert drawn.width >= 900 and drawn.height > 400


def test_an_unpruned_model_has_nothing_to_explain(full_model, tiny_processor) -> None:
    with pytest.raises(QuotaError, match="not pruned"):
        explain(full_model, tiny_processor, make_samples(1)[0])
