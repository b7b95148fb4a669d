"""Where visual tokens stand in the pictures that the user gave: a rectangle for each, in fractions of the picture.

Every family cuts pictures in its own way: into patches, merged or pooled or not, into tiles with a small copy of the
whole beside them. Its file says how (`Family.layout`), with the parts that stand here. Whoever draws tokens, or asks
which one saw a thing, needs no more than the boxes.

A view is (left, top, right, bottom) of what a grid of tokens covers, in fractions of the picture: `WHOLE`, less where a
picture is cropped, more where it is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

WHOLE = (0.0, 0.0, 1.0, 1.0)
View = tuple[float, float, float, float]


@dataclass(frozen=True)
class Box:
    """The place of a visual token: `left` < `right` and `top` < `bottom`, from 0 to 1 of a picture."""

    picture: int
    """The picture of the prompt, or the frame of its video, counted from 0."""
    left: float
    top: float
    right: float
    bottom: float
    level: int = 0
    """0 for a look at the whole picture, 1 for its enlarged tiles; the boxes of one level do not overlap."""
    span: int = 1
    """How many pictures it covers from `picture` on: a token may stand for two frames of a video."""


Boxes = list[Box | None]
"""One for each visual token, in the order of the prompt; None for a token without a place, as a newline."""

Layout = Callable[[Any, Mapping[str, Any], Sequence[Image.Image]], Boxes]
"""(processor, its arguments for one prompt, the prompt's pictures or the frames of its video) -> boxes."""


def grid(picture: int, rows: int, columns: int, view: View = WHOLE, level: int = 0, span: int = 1) -> Boxes:
    """Tokens in reading order over `view`; cells are cut at the edges of the picture, None for those beyond."""
    left, top, right, bottom = view
    # The last edge is `right` itself, not a sum that misses it by a rounding error.
    across = [left + (right - left) * column / columns for column in range(columns)] + [right]
    down = [top + (bottom - top) * row / rows for row in range(rows)] + [bottom]
    return [
        _cut(picture, (across[column], down[row], across[column + 1], down[row + 1]), level, span)
        for row in range(rows)
        for column in range(columns)
    ]


def tiles(picture: int, rows: int, columns: int, side: int) -> Boxes:
    """The enlarged tiles of a picture, in reading order, with `side` x `side` tokens each: tile after tile."""
    boxes: Boxes = []
    for row in range(rows):
        for column in range(columns):
            view = (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
            boxes += grid(picture, side, side, view, level=1)
    return boxes


def middle(wide: float, high: float) -> View:
    """A view around the middle of the picture, `wide` and `high` in fractions of it; more than 1 where it is padded."""
    return (0.5 - wide / 2, 0.5 - high / 2, 0.5 + wide / 2, 0.5 + high / 2)


def _cut(picture: int, cell: View, level: int, span: int) -> Box | None:
    left, top, right, bottom = (min(max(edge, 0.0), 1.0) for edge in cell)
    return Box(picture, left, top, right, bottom, level, span) if left < right and top < bottom else None
