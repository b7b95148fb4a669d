"""From the places of a batch to one row an image."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from quota.quantization.linear import fake_quantize
from quota.ranking import image_rows, risk
from quota.scheme import QuantizationScheme

numbers = st.integers(0, 2).flatmap(
    lambda last: st.lists(st.lists(st.integers(-1, last), min_size=8, max_size=8), min_size=1, max_size=3)
)


@given(numbers)
def test_every_visual_place_is_in_the_row_of_its_image(images: list[list[int]]) -> None:
    if all(image < 0 for row in images for image in row):
        return
    sample, image, places, valid = image_rows(torch.tensor(images), max(map(max, images)) + 1)
    rows = {}
    for s, i, row, real in zip(sample.tolist(), image.tolist(), places, valid, strict=True):
        rows[s, i] = row[real].tolist()
    expected = {
        (s, i): [place for place, other in enumerate(row) if other == i]
        for s, row in enumerate(images)
        for i in sorted(set(row) - {-1})
    }
    assert rows == expected


def test_risk_is_the_norm_of_the_quantisation_error() -> None:
    tokens = torch.randn(2, 3, 128, generator=torch.Generator().manual_seed(0))
    scheme = QuantizationScheme()
    error = fake_quantize(tokens, scheme) - tokens
    torch.testing.assert_close(risk(tokens, scheme), error.square().sum(dim=-1).sqrt())
    assert not risk(tokens, QuantizationScheme(activation_bits=16)).any()
    assert not risk(tokens, QuantizationScheme(modules=("tower",))).any()
