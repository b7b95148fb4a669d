"""What nouns refer to, on packed questions about a scene made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from quota_lab.reference.grounding import GROUND_FIELDS, Grounding
from quota_lab.reference.labels import PATCH
from quota_lab.reference.lessons import Lessons
from quota_lab.reference.pictures import Scene, Sign, Thing
from quota_lab.reference.questions import Question
from quota_lab.reference.tokenizer import build_tokenizer
from quota_lab.reference.words import COLORS

pytestmark = pytest.mark.slow

SCENE = Scene(
    "beach",
    [
        Thing("circle", "red", (0, 0, 24, 24)),
        Thing("circle", "blue", (60, 48, 84, 72)),
        Thing("cat", None, (100, 100, 130, 130)),
    ],
)


SIGN = Sign("STOP", (20, 100, 84, 124), ((24, 38), (38, 52), (52, 66), (66, 80)))


def grounded(question: str, answer: str, scene: Scene = SCENE) -> dict[str, dict[str, int]]:
    """Token -> its labels, for the tokens that have any."""
    tokenizer = build_tokenizer()
    text = Lessons(tokenizer, 1, 0, None)._text([Question("", question, answer)], conversation=False)
    labels = Grounding(tokenizer)(text, scene)
    found = np.flatnonzero((labels >= 0).any(0))
    names = tokenizer.convert_ids_to_tokens(text[0, found].tolist())
    return {
        name.strip("Ġ"): dict(zip(GROUND_FIELDS, map(int, labels[:, at]), strict=True))
        for name, at in zip(names, found, strict=True)
    }


def test_a_colour_narrows_the_name_behind_it() -> None:
    color = list(COLORS).index("red")
    expected = {"count": 1, "row": 12 // PATCH, "column": 12 // PATCH, "color": color}
    assert grounded("Where is the red circle?", "top left") == {"circle": expected}


def test_several_have_a_count_and_no_place() -> None:
    assert grounded("How many circles are there?", "2")["circle"] == {"count": 2, "row": -1, "column": -1, "color": -1}


def test_what_is_not_there_counts_zero() -> None:
    assert grounded("Is there a dog?", "no")["dog"]["count"] == 0


def test_emoji_have_a_place_and_no_colour() -> None:
    place = 115 // PATCH
    assert grounded("Where is the cat?", "bottom right")["cat"] == {
        "count": 1,
        "row": place,
        "column": place,
        "color": -1,
    }


def test_what_the_model_says_is_not_asked() -> None:
    assert set(grounded("Which is higher, the cat or the red circle?", "red circle")) == {"cat", "circle"}
    assert grounded("What is at the left?", "cat") == {}


def test_spelling_looks_from_letter_to_letter() -> None:
    scene = Scene("beach", sign=SIGN)
    row = 112 // PATCH
    found = grounded("Read the sign.", "STOP", scene)
    assert found.pop("sign") == {"count": 1, "row": -1, "column": -1, "color": -1}
    # Each token is asked for the letter after it: the space for S, S for T, and so on.
    expected = [31 // PATCH, 45 // PATCH, 59 // PATCH, 73 // PATCH]
    assert [(label["row"], label["column"]) for label in found.values()] == [(row, column) for column in expected]
    assert list(found) == ["", "S", "T", "O"]


def test_the_last_letter_is_looked_for_at_the_end() -> None:
    found = grounded("What is the last letter on the sign?", "P", Scene("beach", sign=SIGN))
    assert found[""]["column"] == 73 // PATCH
