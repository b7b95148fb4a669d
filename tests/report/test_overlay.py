"""Kept tokens over a picture, checked pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from quota.errors import QuotaError
from quota.prompts import build_inputs
from quota.report.overlay import overlay, seen_picture, token_grid
from quota.report.sheet import Row, draw_sheet, stack
from quota.samples import Sample

RED = (255, 0, 0)


@given(st.sets(st.integers(min_value=0, max_value=11)))
def test_kept_cells_keep_their_colour_and_dropped_ones_fade(kept: set[int]) -> None:
    drawn = overlay(Image.new("RGB", (40, 30), RED), (3, 4), sorted(kept), size=80)
    assert drawn.size == (80, 60)
    for token in range(12):
        row, column = divmod(token, 4)
        colour = drawn.getpixel((column * 20 + 10, row * 20 + 10))
        assert (colour == RED) == (token in kept)


def test_the_border_between_kept_and_dropped_is_drawn() -> None:
    drawn = np.asarray(overlay(Image.new("RGB", (40, 40), "white"), (2, 2), [0], size=40))
    assert tuple(drawn[5, 20]) == tuple(drawn[20, 5]) != (255, 255, 255)
    assert tuple(drawn[35, 20]) == tuple(drawn[20, 35]) == (255, 255, 255)


def test_seen_picture_undoes_the_normalisation(tiny_processor) -> None:
    picture = Image.new("RGB", (32, 32), (12, 130, 250))
    pixels = build_inputs(tiny_processor, [Sample(picture, "what")])["pixel_values"][0]
    assert seen_picture(tiny_processor, pixels).getpixel((16, 16)) == (12, 130, 250)


def test_token_grid_needs_a_token_a_patch(full_model) -> None:
    pixels = torch.zeros(3, 32, 32)
    assert token_grid(full_model, pixels, 16) == (4, 4)
    assert token_grid(full_model, torch.zeros(3, 16, 64), 16) == (2, 8)
    with pytest.raises(QuotaError, match="not a grid of patches"):
        token_grid(full_model, pixels, 17)


def test_a_sheet_holds_all_rows_and_wraps_long_text() -> None:
    panel = Image.new("RGB", (100, 100), RED)
    short = Row("How many?", ["two"], [("all", panel), ("some", panel)])
    long = Row("word " * 200, [], [("all", panel)])
    sheet = draw_sheet([short, long])
    assert sheet.size == stack([draw_sheet([short]), draw_sheet([long])]).size
    assert sheet.width < 1000
    assert (np.asarray(sheet) == RED).all(axis=2).sum() == 3 * 100 * 100
