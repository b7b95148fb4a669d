"""Every message is one line that fits; every number goes through one check."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.errors import LONGEST, QuotaError, check_number


@given(st.text())
def test_any_message_is_one_line_of_printable_text(text: str) -> None:
    message = str(QuotaError(text))
    assert len(message) <= LONGEST
    assert message.isprintable()
    message.encode()


def test_a_usual_message_stays_as_it_is() -> None:
    assert str(QuotaError("keep must be at most 1, got 2")) == "keep must be at most 1, got 2"


def test_a_long_path_loses_its_middle_and_the_advice_stays() -> None:
    message = str(QuotaError(f"cannot read /home/{'deep/' * 200}file.json: no such file; give the name of a file"))
    assert message.startswith("cannot read /home/deep/")
    assert message.endswith("/file.json: no such file; give the name of a file")


def test_many_words_lose_their_middle() -> None:
    message = str(QuotaError("wrong: " + "word " * 500 + "; correct it"))
    assert len(message) == LONGEST and message.startswith("wrong: word") and message.endswith("; correct it")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "1", None, True, 0, -1, 1.5])
def test_numbers_out_of_range(value: Any) -> None:
    with pytest.raises(QuotaError, match="share must be above 0 and at most 1, got"):
        check_number("share", value, above=0, at_most=1)


def test_numbers_within() -> None:
    check_number("share", 1, above=0, at_most=1)
    check_number("share", 0, at_least=0)
    with pytest.raises(QuotaError, match="share must be a finite number, got nan"):
        check_number("share", math.nan)
