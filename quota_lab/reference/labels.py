"""What each image patch shows: the targets of the auxiliary loss that is dropped after training.

For a picture of 12 x 12 patches:
    word    the name that fits the patch: a thing, a letter of the sign, or the place where nothing stands
    color   the colour of the shape on it, or -1
    row     the row (0..11) of the centre of the thing or letter it belongs to, or -1
    column  likewise
    center  1 where the centre of a thing lies
"""

from __future__ import annotations

import numpy as np

from quota_lab.reference.pictures import PICTURE, Scene
from quota_lab.reference.words import COLORS, EMOJI, LETTERS, SCENES, SHAPES

PATCH = 12
GRID = PICTURE // PATCH
PATCH_WORDS: tuple[str, ...] = (*EMOJI, *SHAPES, *SCENES, *LETTERS)
_WORD = {word: index for index, word in enumerate(PATCH_WORDS)}
_COLOR = {color: index for index, color in enumerate(COLORS)}
FIELDS = ("word", "color", "row", "column", "center")


def patch_labels(scene: Scene, coverage: float = 0.25) -> np.ndarray:
    """Labels [5, 144] int16, rows in the order of `FIELDS`; a thing owns a patch from `coverage` of it on."""
    labels = np.full((len(FIELDS), GRID, GRID), -1, np.int16)
    labels[0] = _WORD[scene.place]
    labels[4] = 0
    pixels = np.asarray(scene.owners).reshape(GRID, PATCH, GRID, PATCH).swapaxes(1, 2).reshape(GRID, GRID, -1)
    # A layer of zeros in front, so that a scene without things needs no case of its own.
    shares = np.stack([np.zeros((GRID, GRID)), *((pixels == index + 1).mean(-1) for index in range(len(scene.things)))])
    owner, covered = shares.argmax(0) - 1, shares.max(0) >= coverage
    for index, thing in enumerate(scene.things):
        mine = covered & (owner == index)
        x, y = thing.center
        row, column = int(y) // PATCH, int(x) // PATCH
        labels[0, mine] = _WORD[thing.name]
        labels[1, mine] = -1 if thing.color is None else _COLOR[thing.color]
        labels[2, mine], labels[3, mine] = row, column
        labels[4, row, column] = 1
    if scene.sign is not None:
        _label_letters(labels, scene)
    return labels.reshape(len(FIELDS), -1)


def _label_letters(labels: np.ndarray, scene: Scene) -> None:
    """Each patch whose middle rows meet the sign takes the letter that covers most of its width."""
    sign = scene.sign
    if sign is None:
        return
    _, top, _, bottom = sign.box
    for row in range(GRID):
        if min(bottom, (row + 1) * PATCH) - max(top, row * PATCH) < PATCH // 2:
            continue
        for column in range(GRID):
            left, right = column * PATCH, (column + 1) * PATCH
            overlaps = [min(right, end) - max(left, start) for start, end in sign.letters]
            best = int(np.argmax(overlaps))
            if overlaps[best] >= PATCH / 3:
                middle = int(sum(sign.letters[best]) / 2) // PATCH
                labels[:, row, column] = (_WORD[sign.word[best]], -1, (top + bottom) // 2 // PATCH, middle, 0)
