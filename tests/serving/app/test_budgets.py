"""The slider's recipes are those of `quota rebudget`, and nothing is written for them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import quota
from quota.checkpoint.named import load_model
from quota.errors import QuotaError
from quota.serving.app.budgets import Budgets


@pytest.mark.slow
def test_a_budget_is_what_rebudget_makes_of_it(quota_folder: Path, tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in quota_folder.iterdir()}
    budgets = Budgets(load_model(str(quota_folder))[0])
    assert not budgets.why_not and budgets.least < budgets.chosen < 100
    shutil.copytree(quota_folder, tmp_path / "copy")
    for percent in {budgets.least, 50, 80} - {budgets.chosen}:
        assert budgets.recipe(percent) == quota.rebudget(tmp_path / "copy", compute=percent / 100)
        found = budgets.point(budgets.recipe(percent))
        assert found is not None and found.compute <= percent / 100 + 1e-9
    assert budgets.recipe(budgets.chosen) is budgets.own
    assert budgets.everything.counts(16) == [16]
    with pytest.raises(QuotaError, match="budget"):
        budgets.recipe(budgets.least - 1)
    assert before == {file.name: file.read_bytes() for file in quota_folder.iterdir()}


def test_without_measurements_there_is_one_budget(quota_folder: Path) -> None:
    model = load_model(str(quota_folder))[0]
    del model.quota_measurements
    budgets = Budgets(model)
    assert "measurements.json" in budgets.why_not and "quota compress" in budgets.why_not
    assert budgets.recipe(10) is budgets.own and budgets.point(budgets.own) is None


def test_a_model_that_keeps_every_token_is_refused(full_folder: Path) -> None:
    with pytest.raises(QuotaError, match="keeps every visual token"):
        Budgets(load_model(str(full_folder))[0])
