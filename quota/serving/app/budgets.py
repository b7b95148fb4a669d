"""From the slider to a recipe: what a share of the prefill arithmetic buys, by what calibration has measured.

It is solved as `quota rebudget` does (quota/allocation/choose.py), but in memory: nothing is written to the checkpoint.
The model's Pruner is made anew once, so that it may cut after every layer; from then on each question runs the recipe
of its own slider (`Pruner.running`), in its own thread, and no question waits for the recipe of another.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from quota.allocation.budget import Budget
from quota.allocation.choose import choose
from quota.allocation.frontier import Point, point
from quota.allocation.measurements import Measurements
from quota.checkpoint.rebudgeting import with_schedule
from quota.errors import QuotaError
from quota.models import family
from quota.pruning.pruner import Pruner, is_pruned
from quota.pruning.recipe import PruningRecipe
from quota.pruning.schedule import Schedule

_REMEMBERED = 101


class Budgets:
    """The recipes that `model` can run, by budget: a percentage of the unpruned prefill arithmetic of visual tokens."""

    def __init__(self, model: Any) -> None:
        """Makes the model's Pruner anew. Raises QuotaError for a model that is not pruned."""
        if not is_pruned(model):
            raise QuotaError("this model keeps every visual token; `quota compress` makes one with a recipe")
        pruner: Pruner = model.quota_pruner
        self.depth = len(family(model).decoder_layers)
        self.own = pruner.recipe
        self.everything = with_schedule(self.own, Schedule((self.own.layers[0],), (1.0,)))
        """The recipe that drops nothing."""
        measured: Measurements | None = getattr(model, "quota_measurements", None)
        self.why_not = _why_not(self.own, measured)
        """Why there is no other budget than the checkpoint's, in one line; empty if there is."""
        self.measured = None if self.why_not else measured
        self._text_config = model.config.get_text_config()
        pruner.detach()
        Pruner(model, self.own, pruner.scheme, layers=range(-1, self.depth)).attach()
        # Each takes up to a second, and people move sliders to and fro.
        self._solved = lru_cache(_REMEMBERED)(self._solve)

    @property
    def chosen(self) -> int:
        """That of the checkpoint's own recipe, rounded."""
        tokens = self.own.reference_tokens
        return max(self.least, round(100 * self.own.schedule.compute(tokens, self.depth, self._text_config)))

    @property
    def least(self) -> int:
        """The smallest that measured cuts can keep to."""
        if self.measured is None:
            return 1
        tokens, rows = self.own.reference_tokens, self.measured.errors
        first = min(rows)
        deepest = Schedule.of_counts([(first, min(rows[first]))], tokens)
        return max(1, math.ceil(100 * deepest.compute(tokens, self.depth, self._text_config)))

    def recipe(self, percent: int) -> PruningRecipe:
        """The best within the budget; the checkpoint's own at its own. QuotaError for one that is out of reach."""
        return self.own if self.measured is None or percent == self.chosen else self._solved(percent)

    def point(self, recipe: PruningRecipe) -> Point | None:
        """What a recipe costs, and what is expected of it; None without measurements."""
        if self.measured is None:
            return None
        return point(recipe.schedule, self.measured, self._text_config)

    def _solve(self, percent: int) -> PruningRecipe:
        assert self.measured is not None
        return with_schedule(self.own, choose(Budget(compute=percent / 100), self.measured, self._text_config))


def _why_not(recipe: PruningRecipe, measured: Measurements | None) -> str:
    if measured is None:
        return (
            "This checkpoint holds no measurements.json to find other recipes by; "
            "`quota compress` the original model again to have it."
        )
    if recipe.scorer != measured.scorer:
        return (
            f"The recipe scores tokens by {recipe.scorer!r}, but drops were measured by {measured.scorer!r}; "
            "`quota compress` the original model again."
        )
    return ""
