"""Strings that end an answer, whichever way it is cut into pieces."""

from __future__ import annotations

import pytest

from quota.serving.stops import Stops

TEXT = "one two three two one"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(
    ("stops", "sent"),
    [
        ([], TEXT),
        (["two"], "one "),
        (["three", "two"], "one "),
        (["e t", "ee"], "on"),
        (["absent"], TEXT),
        (["one x"], TEXT),
    ],
)
def test_it_ends_at_the_first_of_them_and_nothing_is_lost(stops: list[str], sent: str, size: int) -> None:
    watched = Stops(stops)
    pieces = [watched.feed(TEXT[start : start + size]) for start in range(0, len(TEXT), size)]
    assert "".join(pieces) + watched.rest() == sent
    assert watched.met == (sent != TEXT)


def test_what_cannot_become_one_is_sent_at_once() -> None:
    watched = Stops(["<end>"])
    assert [watched.feed(text) for text in ("ab", "c<", "d", "<en", "d>e")] == ["ab", "c", "<d", "", ""]
    assert watched.met
