"""When two answers count as the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.evaluation.answers import matches, normalize_answer


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Yes.", "yes"),
        ("  The two   cats! ", "2 cats"),
        ("an apple", "apple"),
        ("A", "a"),
        ("B.", "b"),
        ("twenty", "20"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("t-shirt", "t shirt"),
        ("it's", "its"),
        ("top_left", "top left"),
        ("ＣＡＦＥ", "cafe"),  # noqa: RUF001 (full-width letters are the point)
        ("", ""),
    ],
)
def test_written_examples(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalize_answer(text)
    assert normalize_answer(once) == once


@pytest.mark.parametrize(
    ("prediction", "answer", "same"),
    [
        ("Three", "3", True),
        ("the red ball", "red ball.", True),
        ("red", "blue", False),
        ("yes it is", "yes", False),
        ("", "no", False),
        ("A", "B", False),
    ],
)
def test_exact_match_after_normalisation(prediction: str, answer: str, same: bool) -> None:
    assert matches(prediction, answer) is same
