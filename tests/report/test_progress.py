from __future__ import annotations

import pytest

from quota.report.progress import left, progress_bar


@pytest.mark.parametrize(
    ("done", "total", "elapsed", "expected"),
    [
        pytest.param(0, 10, 5.0, "-", id="nothing is known before the first step"),
        pytest.param(1, 10, 60.0, "0:09:00", id="one step of a minute is enough to tell"),
        pytest.param(3, 4, 10.0, "0:00:04", id="seconds are rounded up"),
        pytest.param(10, 10, 60.0, "0:00:00", id="nothing is left"),
    ],
)
def test_what_is_left_is_told_from_all_that_is_behind(done: int, total: int, elapsed: float, expected: str) -> None:
    assert left(done, total, elapsed) == expected


def test_a_bar_shows_the_share_that_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("calibrating") as update:
        update(3 * 10**12, 4 * 10**12)
    shown = capsys.readouterr().err
    assert "calibrating" in shown
    assert "75%" in shown
