"""Every answer is checked against the scene by a reader that knows only the words of the question."""

from __future__ import annotations

import re
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quota_lab.reference.pictures import PICTURE, Scene, Thing, draw
from quota_lab.reference.questions import TASKS, Question, ask, describe
from quota_lab.reference.words import CELLS, COLORS, SCENES, SHAPES

seeds = st.integers(0, 2**32)


def one(scene: Scene, words: str) -> Thing:
    (thing,) = [thing for thing in scene.things if words in (thing.words, thing.name)]
    return thing


def cell(thing: Thing) -> str:
    x, y = thing.center
    return CELLS[3 * int(3 * y // PICTURE) + int(3 * x // PICTURE)]


def read(scene: Scene, text: str) -> str:
    """The answer to a question that is not multiple choice."""
    names = Counter(thing.words for thing in scene.things)
    if found := re.search(r"(?:Is there|Can you see|picture show) an? ([a-z ]+?)(?: in the picture)?\?", text):
        return "yes" if found[1] in names else "no"
    if found := re.search(r"(?:How many|Count the) ([a-z ]+?)s(?: are there\?| can you see\?|\.)", text):
        return str(names[found[1]])
    if found := re.search(r"color (?:is|of) the (\w+)\?", text):
        return str(one(scene, found[1]).color)
    if found := re.search(r"What is the (\w+) shape|Which shape is (\w+)", text):
        (shape,) = [thing.name for thing in scene.things if thing.color == (found[1] or found[2])]
        return shape
    if found := re.search(r"Is the ([a-z ]+?) (to the left of|to the right of|above|below) the ([a-z ]+)\?", text):
        (x, y), (u, v) = one(scene, found[1]).center, one(scene, found[3]).center
        truth = {"to the left of": x < u, "to the right of": x > u, "above": y < v, "below": y > v}[found[2]]
        return "yes" if truth else "no"
    if found := re.search(r"Which is ([a-z ]+), the ([a-z ]+) or the ([a-z ]+)\?", text):
        axis, pick = {
            "further left": (0, min), "further right": (0, max), "higher": (1, min), "lower": (1, max)
        }[found[1]]  # fmt: skip
        return pick((one(scene, found[2]), one(scene, found[3])), key=lambda thing: thing.center[axis]).words
    if found := re.search(r"(?:Where|part of the picture) is the ([a-z ]+)\?", text):
        return cell(one(scene, found[1]))
    if found := re.search(r"What is (?:in|at) the ((?:top|bottom|left|right|center)[a-z ]*)\?", text):
        (thing,) = [thing for thing in scene.things if cell(thing) == found[1]]
        return thing.words
    assert scene.sign is not None or "sign" not in text
    if found := re.search(r"the (first|last) letter", text):
        return scene.sign.word[0 if found[1] == "first" else -1]
    return scene.sign.word if "sign" in text else scene.place


def check_choice(scene: Scene, question: Question) -> None:
    stem, *options = re.split(r" [A-D]\. ", question.text)
    assert len(set(options)) == 4
    right = options["ABCD".index(question.answer)]
    if stem in ("Which of these is in the picture?", "What can you see?"):
        assert [option in {thing.words for thing in scene.things} for option in options].count(True) == 1
        assert right in {thing.words for thing in scene.things}
    else:
        assert read(scene, stem) == right


@pytest.mark.parametrize("task", TASKS)
@settings(max_examples=150, deadline=None)
@given(seed=seeds)
def test_answers_are_true(task: str, seed: int) -> None:
    rng = Random(seed)
    _, scene = draw(rng)
    question = ask(task, scene, rng)
    if question is None:
        return
    assert question.task == task
    if task == "choice":
        check_choice(scene, question)
    else:
        assert read(scene, question.text) == question.answer


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_descriptions_name_everything(seed: int) -> None:
    _, scene = draw(Random(seed))
    told = describe(scene).answer
    assert scene.place in told and all(thing.words in told for thing in scene.things)


def test_words_of_the_world_do_not_collide() -> None:
    assert not set(COLORS) & set(SHAPES) and not set(SCENES) & set(SHAPES)
