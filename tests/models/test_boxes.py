"""The parts that layouts are made of, on numbers that can be checked by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from quota.models.anyres import anyres
from quota.models.boxes import WHOLE, Box, Boxes, grid, middle, tiles

sides = st.integers(min_value=1, max_value=7)
# The 336 pixels and 24 x 24 patches of CLIP, the 384 and 27 x 27 of SigLIP.
CLIP, SIGLIP = (
    SimpleNamespace(
        vision_config=SimpleNamespace(image_size=size, patch_size=14),
        image_grid_pinpoints=[[size * rows, size * columns] for rows in range(1, most) for columns in range(1, most)],
    )
    for size, most in ((336, 4), (384, 7))
)


def area(boxes: Boxes) -> float:
    return sum((box.right - box.left) * (box.bottom - box.top) for box in boxes if box is not None)


@given(sides, sides)
def test_a_grid_tiles_the_picture_in_reading_order(rows: int, columns: int) -> None:
    boxes = grid(3, rows, columns)
    assert area(boxes) == pytest.approx(1)
    for index, box in enumerate(boxes):
        assert box is not None and box.picture == 3
        row, column = divmod(index, columns)
        assert (box.left, box.top) == pytest.approx((column / columns, row / rows))
        assert (box.right, box.bottom) == pytest.approx(((column + 1) / columns, (row + 1) / rows))


@given(sides, sides, sides)
def test_tiles_are_the_grid_of_all_their_tokens(rows: int, columns: int, side: int) -> None:
    def corners(boxes: Boxes) -> set[tuple[float, ...]]:
        return {
            tuple(round(edge, 9) for edge in (box.left, box.top, box.right, box.bottom))
            for box in boxes
            if box is not None
        }

    boxes = tiles(0, rows, columns, side)
    assert corners(boxes) == corners(grid(0, rows * side, columns * side))
    # The second tile begins behind all tokens of the first.
    if columns > 1 and (box := boxes[side**2]) is not None:
        assert (box.left, box.top, box.level) == (pytest.approx(1 / columns), 0, 1)


def test_what_sticks_out_is_cut_and_what_is_beyond_has_no_box() -> None:
    assert middle(1, 1) == WHOLE
    # The middle half of the columns; a picture as high as half of its padded square.
    assert grid(0, 1, 2, middle(0.5, 1)) == [Box(0, 0.25, 0, 0.5, 1), Box(0, 0.5, 0, 0.75, 1)]
    assert grid(0, 4, 1, middle(1, 2)) == [None, Box(0, 0, 0, 1, 0.5), Box(0, 0, 0.5, 1, 1), None]


@given(st.integers(min_value=30, max_value=2000), st.integers(min_value=30, max_value=2000))
def test_rows_of_a_tiled_picture_end_in_a_token_without_a_place(width: int, height: int) -> None:
    boxes = anyres(0, Image.new("1", (width, height)), CLIP)
    whole, fine = boxes[: 24**2], boxes[24**2 :]
    assert area(whole) == pytest.approx(1)
    rows = fine.count(None)
    columns = len(fine) // rows - 1
    assert all((box is None) == (index % (columns + 1) == columns) for index, box in enumerate(fine))
    # Less than a row or column at either side is left out, as it is part padding.
    assert (1 - 2 / (rows + 2)) * (1 - 2 / (columns + 2)) < area(fine) <= 1 + 1e-9


@pytest.mark.parametrize(
    ("config", "most", "size", "rows", "columns"),
    [
        pytest.param(CLIP, None, (672, 672), 48, 48, id="two by two tiles"),
        # 500 x 300 in 336 x 672 is 560 x 336: 40 columns of 14 pixels.
        pytest.param(CLIP, None, (500, 300), 24, 40, id="a lying picture"),
        # 36 tiles are more than 9: half of the 162 tokens along each side.
        pytest.param(SIGLIP, 9, (2304, 2304), 81, 81, id="scaled down"),
    ],
)
def test_tokens_of_published_sizes(
    config: Any, most: int | None, size: tuple[int, int], rows: int, columns: int
) -> None:
    side = config.vision_config.image_size // 14
    fine = anyres(0, Image.new("1", size), config, most)[side**2 :]
    assert (fine.count(None), len(fine)) == (rows, rows * (columns + 1))
    assert area(fine) == pytest.approx(1, abs=0.05)
