"""Prose as windows of tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quota.errors import QuotaError
from quota_lab.testbeds.prose import drawn_windows, first_windows, read_prose


def test_a_paragraph_becomes_one_line(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_bytes("\ufeffIt was\r\nlate.\r\n\r\n\r\n   The   end.\n".encode())
    assert read_prose(file) == "It was late.\n\nThe end."


def test_an_unreadable_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for name in ("latin.txt", "absent.txt"):
        with pytest.raises(QuotaError, match=name):
            read_prose(tmp_path / name)


def test_first_windows_follow_each_other() -> None:
    assert first_windows(torch.arange(11), 3, 3).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 9), st.integers(0, 50))
def test_drawn_windows_are_pieces_of_the_text_and_do_not_overlap(
    total: int, count: int, length: int, seed: int
) -> None:
    tokens = torch.arange(total)
    if count * length > total:
        with pytest.raises(QuotaError, match="longer text"):
            drawn_windows(tokens, count, length, seed)
        return
    windows = drawn_windows(tokens, count, length, seed)
    assert windows.shape == (count, length)
    assert torch.equal(windows, windows[:, :1] + torch.arange(length))
    assert len(windows.unique()) == count * length
    assert torch.equal(windows, drawn_windows(tokens, count, length, seed))


def test_the_seed_draws_the_windows() -> None:
    tokens = torch.arange(1000)
    assert not torch.equal(drawn_windows(tokens, 5, 20, 0), drawn_windows(tokens, 5, 20, 1))
