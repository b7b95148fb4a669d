"""From the places of a batch to one row an image."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from quota.pruning.rows import image_rows

batches = st.integers(0, 2).flatmap(
    lambda last: st.lists(st.lists(st.integers(-1, last), min_size=8, max_size=8), min_size=1, max_size=3)
)


@given(batches)
def test_every_visual_place_is_in_the_row_of_its_image(images: list[list[int]]) -> None:
    count = max(map(max, images)) + 1
    if count == 0:
        return
    once = [[row.count(image) + image for image in range(count)] for row in images]
    rows = image_rows(torch.tensor(images), once)
    numbers = torch.arange(8 * len(images)).view(-1, 8)
    found = [
        (own[real].tolist(), size) for own, real, size in zip(rows.of(numbers), rows.valid, rows.sizes, strict=True)
    ]
    expected = [
        ([8 * s + place for place, other in enumerate(row) if other == i], once[s][i])
        for s, row in enumerate(images)
        for i in sorted(set(row) - {-1})
    ]
    assert found == expected
    assert rows.counts == [len(own) for own, _ in expected]
    assert torch.equal(rows.flat(8)[rows.valid], rows.of(numbers)[rows.valid])
