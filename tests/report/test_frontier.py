"""The frontier as a table and as a plot."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from quota.allocation.clock import Clock
from quota.allocation.measurements import Measurements
from quota.checkpoint.manifest import MANIFEST_FILE
from quota.errors import QuotaError
from quota.report.frontier import draw_frontier
from quota.report.inspection import inspect_path
from quota.report.tables import frontier_table


@pytest.mark.parametrize("clock", [None, Clock(10.0, 1.0, 0.5, 6, 16.0)], ids=["not timed", "timed"])
def test_it_is_drawn_for_all_that_was_measured(clock: Clock | None, quota_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(quota_folder, tmp_path / "copy"))
    (folder / MANIFEST_FILE).unlink()
    measured = Measurements.load(folder / "measurements.json").model_copy(update={"clock": clock})
    measured.save(folder / "measurements.json")
    draw_frontier(inspect_path(folder), tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.width == (920 if clock is None else 1380)
        assert {(59, 110, 165), (214, 69, 65)} <= {colour for _, colour in plot.getcolors(maxcolors=1 << 20) or []}


def test_without_measurements_there_is_none(quota_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(quota_folder, tmp_path / "copy"))
    for name in (MANIFEST_FILE, "measurements.json"):
        (folder / name).unlink()
    found = inspect_path(folder)
    assert (found.frontier, found.chosen, found.measurements) == ([], None, None)
    with pytest.raises(QuotaError, match="holds no measurements"):
        draw_frontier(found, tmp_path / "plot.png")


def test_a_row_says_what_it_costs_and_whether_it_was_measured(quota_folder: Path) -> None:
    found = inspect_path(quota_folder)
    console = Console(width=120, record=True)
    console.print(frontier_table(found.frontier, found.chosen))
    lines = console.export_text().splitlines()
    for point in found.frontier:
        error = f"{point.error:.3g}" if point.measured else f"~{point.error:.3g}"
        assert [line for line in lines if error in line.split() and f"{100 * point.compute:.1f}" in line.split()]
    assert found.chosen is not None and found.chosen.measured
    assert found.figures()["chosen"]["kv_bytes"] == found.chosen.kv_bytes
