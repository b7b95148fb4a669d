"""The score that loses less is taken, and where nothing tells them apart the one with attention."""

from __future__ import annotations

import pytest

from quota.allocation.scores import EARLY, PEAKS, better_score
from quota.pruning.schedule import Schedule

TOKENS = 100


@pytest.mark.parametrize(
    ("early", "better"),
    [
        pytest.param([0.01, 0.01], EARLY, id="less everywhere"),
        pytest.param([0.04, 0.04], PEAKS, id="more everywhere"),
        pytest.param([0.02, 0.02], PEAKS, id="as much"),
        pytest.param([0.04, 0.005], EARLY, id="twice as much here, a quarter there"),
        pytest.param([0.08, 0.01], PEAKS, id="four times as much here, half there"),
    ],
)
def test_by_the_geometric_mean_over_layers(early: list[float], better: str) -> None:
    asked = []

    def error(schedule: Schedule, scorer: str) -> float:
        asked.append((schedule.layers, schedule.counts(TOKENS), scorer))
        return dict(zip((-1, 3), early, strict=True))[schedule.layers[0]] if scorer == EARLY else 0.02

    assert better_score(error, [-1, 3], TOKENS) == better
    assert asked == [((layer,), [30], scorer) for layer in (-1, 3) for scorer in (EARLY, PEAKS)]
