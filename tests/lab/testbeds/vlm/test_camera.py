"""What the camera leaves of a picture."""

from __future__ import annotations

from random import Random

import numpy as np
from PIL import Image

from quota_lab.testbeds.vlm.camera import GRAIN, take


def test_a_seed_is_a_picture() -> None:
    image = Image.new("RGB", (40, 30), (90, 120, 150))
    one, again, other = (np.asarray(take(image, Random(seed))) for seed in (1, 1, 2))
    assert (one == again).all() and (one != other).any()


def test_a_plain_picture_keeps_its_colour_but_for_the_grain() -> None:
    taken = np.asarray(take(Image.new("RGB", (200, 100), (90, 120, 150)), Random(0))).astype(float)
    assert taken.shape == (100, 200, 3)
    assert np.abs(taken.mean((0, 1)) - (90, 120, 150)).max() < 1.5
    assert GRAIN[0] - 1 < taken.std((0, 1)).max() < GRAIN[1] + 1


def test_edges_are_softened() -> None:
    half = np.zeros((64, 64, 3), np.uint8)
    half[:, 32:] = 200
    taken = np.asarray(take(Image.fromarray(half), Random(3))).astype(float).mean((0, 2))
    steps = np.abs(np.diff(taken))
    assert steps.max() < 0.75 * 200 and taken[:28].mean() < 25 and taken[36:].mean() > 175
