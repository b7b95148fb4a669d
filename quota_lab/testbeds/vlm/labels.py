"""What each of the 256 patches shows: the targets of the auxiliary losses that are dropped after training.

thing       kind of thing, "sign" or "background"
color       of the frame or board it belongs to, or -1
letter      of the sign, or -1
word        of the sign, for every patch of it, or -1
vertical    half of the picture in which it lies, or the row of the photograph that it belongs to
horizontal  third of the picture, or the column of the photograph, likewise
row         its own row (0..15)
column      its own column (0..15)
"""

from __future__ import annotations

import numpy as np

from quota_lab.testbeds.vlm.pictures import PICTURE, Box, Scene
from quota_lab.testbeds.vlm.words import BACKGROUND, COLORS, KINDS, LETTERS, SIGN, SIGNS

PATCH = 14  # pixels, of DINOv2-S/14
GRID = PICTURE // PATCH
THINGS = (*KINDS, SIGN, BACKGROUND)
FIELDS = ("thing", "color", "letter", "word", "vertical", "horizontal", "row", "column")
_THING = {name: index for index, name in enumerate(THINGS)}
_COLOR = {name: index for index, name in enumerate(COLORS)}
_LETTER = {name: index for index, name in enumerate(LETTERS)}
_SIGN = {name: index for index, name in enumerate(SIGNS)}
_PLACE = np.arange(GRID)


def patch_labels(scene: Scene, coverage: float = 0.3) -> np.ndarray:
    """Labels [8, 256] int16, rows in the order of `FIELDS`; a thing owns a patch from `coverage` of it on."""
    labels = np.full((len(FIELDS), GRID, GRID), -1, np.int16)
    labels[0] = _THING[BACKGROUND]
    labels[6], labels[7] = _PLACE[:, None], _PLACE[None]
    labels[4] = labels[6] * 2 // GRID
    labels[5] = (labels[7] * PATCH + PATCH // 2) * 3 // PICTURE
    for thing in scene.things:
        mine = _covered(thing.box, coverage)
        for field, value in ((0, _THING[thing.kind]), (1, _COLOR[thing.color]), (4, thing.row), (5, thing.column)):
            labels[field][mine] = value
    sign = scene.sign
    if sign is not None:
        mine = _covered(sign.box, coverage)
        for field, value in ((0, _THING[SIGN]), (1, _COLOR[sign.color]), (3, _SIGN[sign.word])):
            labels[field][mine] = value
        middle = _covered(sign.box, 0.5)
        for letter, (left, right) in zip(sign.word.upper(), sign.letters, strict=True):
            columns = _overlap(left, right) / PATCH >= 0.5
            labels[2][middle & columns[None]] = _LETTER[letter]
    return labels.reshape(len(FIELDS), -1)


def _overlap(start: float, end: float) -> np.ndarray:
    """Pixels that each row or column of patches shares with a span: [16]."""
    return np.clip(np.minimum(end, (_PLACE + 1) * PATCH) - np.maximum(start, _PLACE * PATCH), 0, None)


def _covered(box: Box, share: float) -> np.ndarray:
    """[16, 16] bool: patches that lie in `box` by at least `share`."""
    left, top, right, bottom = box
    return np.outer(_overlap(top, bottom), _overlap(left, right)) >= share * PATCH * PATCH
