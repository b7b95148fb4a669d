"""Nothing that people or models write becomes markup."""

from __future__ import annotations

from quota.serving.app.answering import Answer
from quota.serving.app.views import answer_view, kept_view, message_view, size

MARKUP = "<script>alert('1')</script>&\""


def test_markup_is_escaped_wherever_it_comes_from() -> None:
    said = Answer(MARKUP, finished=True)
    for view in (
        answer_view(MARKUP, said, said),
        message_view(MARKUP),
        kept_view([(MARKUP, "data:,")]),
        kept_view([], MARKUP),
    ):
        assert "<script" not in view and "&lt;script&gt;" in view


def test_what_is_said_of_the_comparison() -> None:
    one, other = Answer("one", finished=True), Answer("other", finished=True)
    assert "the same" in answer_view("?", one, one) and "another answer" in answer_view("?", one, other)
    assert "is asked next" in answer_view("?", one, None)


def test_a_question_without_end_is_cut_on_the_page() -> None:
    assert len(answer_view("x" * 100_000, Answer(), None)) < 2000


def test_bytes_as_people_read_them() -> None:
    assert [size(248_800), size(2_500_000)] == ["249 KB", "2.5 MB"]
