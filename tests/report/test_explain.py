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
from quota.samples import Sample


def test_kept_tokens_are_those_of_the_trace(quota_folder: Path, tmp_path: Path) -> None:
    model, processor, _ = load_model(str(quota_folder))
    recipe = PruningRecipe.load(quota_folder / "recipe.json")
    [sample] = make_samples(1, seed=5)
    explanation = explain(model, processor, sample, size=64)
    with quota.record(model) as trace:
        generate(model, processor, build_inputs(processor, [sample]))
    assert explanation.followed.kept == {layer: kept[0].tolist() for layer, kept in trace.kept.items()}
    assert [len(kept) for kept in explanation.followed.kept.values()] == recipe.counts(16)
    assert explanation.followed.answer == answer(model, processor, sample)
    assert {name: len(panels) for name, panels in explanation.panels.items()} == {"picture 1": 1 + len(recipe.layers)}
    assert explanation.figures()["boxes"][5] == {
        "picture": 0,
        "left": 0.25,
        "top": 0.25,
        "right": 0.5,
        "bottom": 0.5,
        "level": 0,
        "span": 1,
    }

    file = tmp_path / "kept.png"
    draw_explanation(sample.question, explanation, file)
    with Image.open(file) as drawn:
        assert drawn.width >= 900 and drawn.height > 400


def test_every_picture_has_a_row_as_the_user_gave_it(quota_folder: Path) -> None:
    model, processor, _ = load_model(str(quota_folder))
    wide, tall = Image.new("RGB", (50, 30), "red"), Image.new("RGB", (20, 40), "blue")
    explanation = explain(model, processor, Sample((wide, tall), "what is this"), size=100)
    assert list(explanation.panels) == ["picture 1", "picture 2"]
    for panels, size, colour in zip(
        explanation.panels.values(), [(100, 60), (50, 100)], [(255, 0, 0), (0, 0, 255)], strict=True
    ):
        assert panels[0][0] == "what the model sees: 16 tokens"
        assert {panel.size for _, panel in panels} == {size}
        assert panels[0][1].getpixel((25, 30)) == colour
    for (layer, kept), *captions in zip(
        explanation.followed.kept.items(), *(panels[1:] for panels in explanation.panels.values()), strict=True
    ):
        each = [sum(index // 16 == picture for index in kept) for picture in (0, 1)]
        assert [caption for caption, _ in captions] == [
            f"{'before layer 0' if layer < 0 else f'after layer {layer}'}: {count} kept" for count in each
        ]
    headings = [(row.heading, list(row.notes)) for row in explanation.rows("what", "it is")]
    assert headings == [("what", ["it is", "picture 1"]), ("", ["picture 2"])]


def test_an_unpruned_model_has_nothing_to_explain(full_model, tiny_processor) -> None:
    with pytest.raises(QuotaError, match="not pruned"):
        explain(full_model, tiny_processor, make_samples(1)[0])
