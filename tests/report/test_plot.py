"""The schedule plot, and what is said without matplotlib."""

from __future__ import annotations

from pathlib import Path

import pytest

from quota.errors import QuotaError
from quota.pruning.recipe import PruningRecipe
from quota.report import plot as schedule


@pytest.mark.parametrize(
    "sensitivities", [pytest.param((), id="not measured"), pytest.param((0.1, 0.2), id="measured")]
)
def test_the_plot_has_the_width_asked_for(sensitivities: tuple[float, ...]) -> None:
    recipe = PruningRecipe(
        layers=(1, 2),
        keep_ratios=(0.6, 0.3),
        keep=0.3,
        sensitivities=sensitivities,
        reference_tokens=16,
        model_fingerprint="x",
    )
    picture = schedule.schedule_plot(recipe, recipe.tokens_per_layer(16, 4), width=900)
    assert picture.width == 900
    colours = {colour for _, colour in picture.getcolors(maxcolors=1 << 20) or []}
    assert {(214, 69, 65), (154, 165, 177)} <= colours


def test_without_matplotlib_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "find_spec", lambda name: None)
    with pytest.raises(QuotaError, match=r"pip install 'quota-vlm\[plot\]'"):
        schedule.require_matplotlib()


def test_the_package_itself_does_not_import_matplotlib() -> None:
    """It is an extra: every import of it stands inside a function."""
    root = Path(schedule.__file__).parents[1]
    lines = [line for file in root.rglob("*.py") for line in file.read_text().splitlines()]
    assert not [line for line in lines if line.startswith(("import matplotlib", "from matplotlib"))]
