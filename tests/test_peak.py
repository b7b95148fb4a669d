"""The largest attention weight of the text, against one token and head at a time."""

from __future__ import annotations

import pytest
import torch

from quota import peak as module
from quota.peak import peak, peak_naive


@pytest.mark.parametrize("chunk", [1, 1 << 24], ids=["row by row", "at once"])
@pytest.mark.parametrize("past", [0, 3])
def test_is_the_maximum_over_heads_and_words(past: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(3, 4, 7, 8, generator=draw)
    key = torch.randn(3, 2, 7 + past, 8, generator=draw)
    text = torch.rand(3, 7, generator=draw) < 0.5
    text[2] = False
    visible = torch.rand(3, 7 + past, generator=draw) < 0.7
    visible[1, : past + 3] = False
    best = peak(query, key, text, visible, 0.3)
    torch.testing.assert_close(best, peak_naive(query, key, text, visible, 0.3))
    assert not best[2].any() and not best[~visible].any()
    assert bool(best[0].any() and best[1].any())


def test_one_head_of_one_word_is_enough() -> None:
    # Two heads of two words over two pictures: only the second head of the first word looks at picture 0.
    key = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [-1.0, -1.0]])[None, None]
    query = torch.full((1, 2, 4, 2), 0.0)
    query[0, :, :] = torch.tensor([0.0, 100.0])
    query[0, 1, 2] = torch.tensor([100.0, 0.0])
    text = torch.tensor([[False, False, True, True]])
    received = peak(query, key, text, torch.ones(1, 4, dtype=torch.bool), 1.0)
    torch.testing.assert_close(received, torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
