"""The drawn pictures and what is known about them."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quota_lab.reference.labels import FIELDS, GRID, PATCH, PATCH_WORDS, patch_labels
from quota_lab.reference.pictures import PICTURE, Scene, draw
from quota_lab.reference.scenes import background
from quota_lab.reference.sprites import sprites
from quota_lab.reference.words import EMOJI, LETTERS, SCENES, SIGNS

seeds = st.integers(0, 2**32)


def test_the_same_seed_draws_the_same_picture() -> None:
    pictures = [np.asarray(draw(Random(5))[0]) for _ in range(2)]
    assert np.array_equal(*pictures)
    assert not np.array_equal(pictures[0], np.asarray(draw(Random(6))[0]))


def test_every_emoji_has_a_sprite_that_fills_its_box() -> None:
    for name in EMOJI:
        left, top, right, bottom = sprites()[name].getchannel("A").getbbox() or (0, 0, 0, 0)
        assert max(right - left, bottom - top) >= 60, name


@pytest.mark.parametrize("place", SCENES)
def test_places_are_told_apart_by_colour(place: str) -> None:
    def histogram(name: str, seed: int) -> np.ndarray:
        pixels = np.asarray(background(name, PICTURE, Random(seed))).reshape(-1, 3) // 32
        return np.bincount(pixels @ [64, 8, 1], minlength=512) / len(pixels)

    here = [histogram(place, seed) for seed in range(20)]
    means = {name: np.mean([histogram(name, seed) for seed in range(20, 40)], 0) for name in SCENES}
    nearest = [min(means, key=lambda name: np.abs(means[name] - one).sum()) for one in here]
    assert nearest.count(place) >= 16


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_things_lie_inside_and_apart(seed: int) -> None:
    _, scene = draw(Random(seed))
    assert len(scene.things) <= 6
    for number, thing in enumerate(scene.things):
        left, top, right, bottom = thing.box
        assert 0 <= left < right <= PICTURE and 0 <= top < bottom <= PICTURE
        for other in scene.things[:number]:
            across = min(right, other.box[2]) - max(left, other.box[0])
            down = min(bottom, other.box[3]) - max(top, other.box[1])
            assert min(across, down) <= 3


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_patch_labels_name_what_stands_there(seed: int) -> None:
    _, scene = draw(Random(seed))
    labels = dict(zip(FIELDS, patch_labels(scene).reshape(len(FIELDS), GRID, GRID), strict=True))
    named = {thing.name for thing in scene.things} | set(scene.sign.word if scene.sign else "")
    owned = labels["row"] >= 0
    patches = np.asarray(scene.owners).reshape(GRID, PATCH, GRID, PATCH)
    lettered = np.isin(labels["word"], [PATCH_WORDS.index(letter) for letter in LETTERS])
    assert {PATCH_WORDS[word] for word in labels["word"][owned]} <= named
    assert {PATCH_WORDS[word] for word in labels["word"][~owned]} <= {scene.place}
    for index, thing in enumerate(scene.things):
        row, column = int(thing.center[1]) // PATCH, int(thing.center[0]) // PATCH
        assert labels["center"][row, column] == 1
        # A patch that is half of it is its own, or the sign's over it; a small bicycle's strokes fill none.
        filled = ((patches == index + 1).mean((1, 3)) > 0.5) & ~lettered
        assert {PATCH_WORDS[word] for word in labels["word"][filled]} <= {thing.name}
        assert (labels["row"][filled] == row).all() and (labels["column"][filled] == column).all()
    assert ((labels["word"] >= 0) & (labels["word"] < len(PATCH_WORDS))).all()


def test_signs_are_labelled_letter_by_letter() -> None:
    found = 0
    for seed in range(60):
        scene: Scene = draw(Random(seed))[1]
        if scene.sign is None:
            continue
        words = {PATCH_WORDS[word] for word in patch_labels(scene)[0]}
        found += set(scene.sign.word) <= words
        assert scene.sign.word in SIGNS
    assert found >= 20
