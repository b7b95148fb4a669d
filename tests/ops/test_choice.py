"""Which tokens go on after a cut, and where they stand."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from quota.ops.choice import cut, right_align


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4))
def test_right_align_keeps_order(rows: list[list[bool]]) -> None:
    places, filled = right_align(torch.tensor(rows))
    for row, place, full in zip(rows, places, filled, strict=True):
        kept = [index for index, keep in enumerate(row) if keep]
        assert place[full].tolist() == kept
        assert full.tolist() == [False] * (len(full) - len(kept)) + [True] * len(kept)
    assert places.shape[1] == max(sum(row) for row in rows)


def test_the_best_of_each_row_go_on_with_all_others() -> None:
    # Sample 0: text, two images of two tokens, text. Sample 1: padding, text, one image of three, text.
    score = torch.tensor([[1.0, 2.0, 9.0], [5.0, 5.0, 9.0], [0.0, 3.0, 2.0]])
    valid = torch.tensor([[True, True, False], [True, True, False], [True, True, True]])
    places = torch.tensor([[1, 2, 0], [3, 4, 0], [8, 9, 10]])
    others = torch.tensor([[1, 0, 0, 0, 0, 1], [0, 1, 0, 0, 0, 1]]).bool()
    found = cut(score, [1, 1, 2], valid, places, others)
    assert found.kept.int().tolist() == [[1, 0, 1, 1, 0, 1], [0, 1, 0, 1, 1, 1]]
    assert found.slots.tolist() == [[0, 2, 3, 5], [1, 3, 4, 5]]
    assert found.filled.all()
