"""Kept tokens over a picture, checked pixel by pixel."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from quota.models.boxes import Box, grid, middle
from quota.report.overlay import overlay
from quota.report.sheet import Row, draw_sheet, stack

RED = (255, 0, 0)


def cells(rows: int, columns: int, level: int = 0) -> list[Box]:
    return [box for box in grid(0, rows, columns, level=level) if box is not None]


@given(st.sets(st.integers(min_value=0, max_value=11)))
def test_kept_cells_keep_their_colour_and_dropped_ones_fade(kept: set[int]) -> None:
    boxes = cells(3, 4)
    drawn = overlay(Image.new("RGB", (40, 30), RED), boxes, [boxes[token] for token in kept], size=80)
    assert drawn.size == (80, 60)
    for token in range(12):
        row, column = divmod(token, 4)
        colour = drawn.getpixel((column * 20 + 10, row * 20 + 10))
        assert (colour == RED) == (token in kept)


def test_the_border_between_kept_and_dropped_is_drawn() -> None:
    boxes = cells(2, 2)
    drawn = np.asarray(overlay(Image.new("RGB", (40, 40), "white"), boxes, boxes[:1], size=40))
    assert tuple(drawn[5, 20]) == tuple(drawn[20, 5]) != (255, 255, 255)
    assert tuple(drawn[35, 20]) == tuple(drawn[20, 35]) == (255, 255, 255)


def test_a_place_fades_by_the_share_of_its_tokens_that_are_gone() -> None:
    boxes = cells(1, 1) + cells(1, 2, level=1)
    picture = Image.new("RGB", (40, 40), RED)
    left, right = (20, 20), (60, 20)
    none, all_of_it = overlay(picture, boxes, [], 80), overlay(picture, boxes, boxes, 80)
    whole_and_left = overlay(picture, boxes, boxes[:2], 80)
    assert all_of_it.getpixel(left) == whole_and_left.getpixel(left) == RED
    half = np.asarray(none.getpixel(right)) / 2 + np.asarray(RED) / 2
    assert np.abs(np.asarray(whole_and_left.getpixel(right)) - half).max() <= 1


def test_what_no_token_saw_is_faded_though_all_are_kept() -> None:
    boxes = [box for box in grid(0, 2, 2, middle(0.5, 1)) if box is not None]
    drawn = overlay(Image.new("RGB", (80, 40), RED), boxes, boxes, size=80)
    assert drawn.getpixel((40, 20)) == RED
    assert drawn.getpixel((5, 20)) == drawn.getpixel((75, 20)) != RED


def test_a_sheet_holds_all_rows_and_wraps_long_text() -> None:
    panel = Image.new("RGB", (100, 100), RED)
    short = Row("How many?", ["two"], [("all", panel), ("some", panel)])
    long = Row("word " * 200, [], [("all", panel)])
    sheet = draw_sheet([short, long])
    assert sheet.size == stack([draw_sheet([short]), draw_sheet([long])]).size
    assert sheet.width < 1000
    assert (np.asarray(sheet) == RED).all(axis=2).sum() == 3 * 100 * 100
