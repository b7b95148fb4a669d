from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny_llava import make_model

from quota import PruningRecipe, QuantizationScheme, QuotaError
from quota.checkpoint.card import CARD_FILE, model_card, record_recipe, record_retention


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / CARD_FILE).write_text(model_card(make_model(), QuantizationScheme(), None))
    return tmp_path


def test_a_later_retention_replaces_an_earlier_one_and_nothing_else(folder: Path) -> None:
    before = (folder / CARD_FILE).read_text().splitlines()
    record_retention(folder, 0.5, (0.4, 0.6), "original", "first", 10)
    record_retention(folder, 0.912, (0.9, 0.95), "original", "second", 600)
    after = (folder / CARD_FILE).read_text().splitlines()
    changed = [line for line in after if line not in before]
    assert len(before) == len(after)
    [line] = changed
    assert line.startswith("- **Retention: 91.2%** of the score of original (95% interval 90.0% to 95.0%)")
    assert line.endswith("the tasks of second, 600 questions.")


def test_a_card_that_has_no_place_for_it_is_left_alone(folder: Path) -> None:
    (folder / CARD_FILE).write_text("# Mine\n")
    with pytest.raises(QuotaError, match="has no line"):
        record_retention(folder, 0.5, (0.4, 0.6), "original", "suite", 10)
    assert (folder / CARD_FILE).read_text() == "# Mine\n"


def test_a_missing_card_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(QuotaError, match="cannot read"):
        record_retention(tmp_path, 0.5, (0.4, 0.6), "original", "suite", 10)


def test_a_card_speaks_of_another_recipe_as_if_it_had_been_the_first(tmp_path: Path) -> None:
    older, newer = (
        PruningRecipe(layers=(1,), keep_ratios=(keep,), keep=keep, reference_tokens=16, model_fingerprint="x")
        for keep in (0.5, 0.25)
    )
    (tmp_path / CARD_FILE).write_text(model_card(make_model(), QuantizationScheme(), older) + "My own notes.\n")
    record_retention(tmp_path, 0.5, (0.4, 0.6), "original", "first", 10)
    record_recipe(tmp_path, older, newer)
    expected = model_card(make_model(), QuantizationScheme(), newer) + "My own notes.\n"
    assert (tmp_path / CARD_FILE).read_text() == expected
    (tmp_path / CARD_FILE).write_text("# Mine\n")
    with pytest.raises(QuotaError, match=r"has no line '- .*Visual tokens:'"):
        record_recipe(tmp_path, older, newer)


def test_an_unrotated_checkpoint_needs_no_lines_without_quota() -> None:
    assert "refuses to load" not in model_card(make_model(), QuantizationScheme(hadamard=0, embedding_bits=16), None)
    card = model_card(make_model(), QuantizationScheme(hadamard=0), None)
    assert "refuses to load" in card and "apply_transform_config" not in card
