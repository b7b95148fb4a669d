"""Another budget for a checkpoint: a new recipe from what calibration has measured, in place of the old one.

The recipe is the one that `quota.compress` would have found from the same measurements (quota/allocation/choose.py).
Without the calibration set, schedules that were not measured whole are judged by what is expected of them; with it they
are measured, and remembered. A machine that was not timed yet is timed before a budget of time, on the typical prompt.

What changes are recipe, measurements, manifest and card, and they change together: a folder with the new ones and, by
hard links, all other files takes the place of the old one in one step (quota/files.py).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from quota.allocation.budget import Budget
from quota.allocation.choose import TRIED, choose
from quota.allocation.clock import machines, prefill_clock
from quota.allocation.drops import Drops
from quota.allocation.measurements import Measurements
from quota.allocation.prompt import typical_inputs
from quota.allocation.search import Whole
from quota.checkpoint.card import CARD_FILE, record_recipe
from quota.checkpoint.described import Described, described
from quota.checkpoint.lock import writing
from quota.checkpoint.manifest import MANIFEST_FILE, reseal, verify_loading
from quota.checkpoint.named import load_model
from quota.checkpoint.save import CONFIG_FILE, MEASUREMENTS_FILE, RECIPE_FILE, write_recipe
from quota.errors import QuotaError
from quota.files import staged_folder, tidy
from quota.progress import Meter, Progress
from quota.pruning.recipe import PruningRecipe
from quota.pruning.schedule import Schedule, keep_count
from quota.samples import Sample, in_order


def rebudget(
    folder: str | os.PathLike[str],
    keep: float | None = None,
    *,
    compute: float | None = None,
    milliseconds: float | None = None,
    kv_bytes: float | None = None,
    samples: Sequence[Sample] | None = None,
    progress: Progress | None = None,
) -> PruningRecipe:
    """Give the checkpoint in `folder` the recipe for another budget, and return it.

    Args:
        keep: share of visual tokens left in the end, in (0, 1]; None leaves it to the other limit.
        compute: as of `quota.compress`; of this and the next two at most one.
        milliseconds: as there.
        kv_bytes: as there.
        samples: those that the checkpoint was calibrated on, in any order, to measure schedules whole.
        progress: called with how many schedules are measured, and of how many, if there are samples.

    At any moment the folder holds the old recipe with its manifest and card, or the new one with its own; retention
    that was measured under the old one leaves the card. Raises QuotaError for a checkpoint without measurements, or
    with another model's, for other samples, for a budget that is out of reach, and while another run writes the folder.
    """
    target, budget = Path(folder).resolve(), Budget(keep, compute, milliseconds, kv_bytes)
    if budget == Budget():
        raise QuotaError("there is no new budget; give keep, compute, milliseconds or kv_bytes")
    with writing(target):
        # Also where nothing will have to be written.
        tidy(target)
        if (target / MANIFEST_FILE).exists():
            verify_loading(target, target / MANIFEST_FILE, [CONFIG_FILE, RECIPE_FILE, MEASUREMENTS_FILE])
        found = described(target)
        recipe, measured = _measured(target, found)
        text_config = found.config.get_text_config()
        timed = milliseconds is None or (measured.clock is not None and measured.clock.machine in machines())
        if samples is None and timed:
            schedule, more = choose(budget, measured, text_config), measured
        else:
            ordered = None if samples is None else _calibrated_on(recipe, samples)
            schedule, more = _on_the_model(target, budget, measured, ordered, timed, Meter(progress))
        new = with_schedule(recipe, schedule)
        if (new, more) != (recipe, measured):
            _replace(target, recipe, new, more)
    return new


def with_schedule(recipe: PruningRecipe, schedule: Schedule) -> PruningRecipe:
    """The recipe with other layers and keep ratios."""
    changed = {"layers": schedule.layers, "keep_ratios": schedule.ratios, "keep": schedule.ratios[-1]}
    return PruningRecipe(**recipe.model_dump(exclude={"scheme"}) | changed, scheme=recipe.scheme)


def _measured(folder: Path, found: Described) -> tuple[PruningRecipe, Measurements]:
    """Recipe and measurements. QuotaError if there are none, or if they do not go together."""
    recipe, measured = found.recipe, found.measurements
    if recipe is None:
        raise QuotaError(f"{folder} keeps every visual token; `quota compress` makes one with a recipe")
    if measured is None:
        raise QuotaError(
            f"{folder} holds no {MEASUREMENTS_FILE} to find a recipe by: it was compressed by an older quota, or with "
            "method paper; compress the original model again"
        )
    if recipe.scorer != measured.scorer:
        raise QuotaError(
            f"the recipe of {folder} scores tokens by {recipe.scorer!r}, but drops were measured by "
            f"{measured.scorer!r}; compress the original model again"
        )
    return recipe, measured


def _calibrated_on(recipe: PruningRecipe, samples: Sequence[Sample]) -> list[Sample]:
    """The samples in their order. QuotaError for others than the recipe was calibrated on."""
    ordered, drawn = in_order(samples)
    if drawn != recipe.calibration_fingerprint:
        raise QuotaError(
            f"these {len(samples)} samples are not the {recipe.samples} that the checkpoint was calibrated on; "
            "give those, or none"
        )
    return ordered


def _on_the_model(
    folder: Path, budget: Budget, measured: Measurements, samples: list[Sample] | None, timed: bool, meter: Meter
) -> tuple[Schedule, Measurements]:
    """The schedule, and what was measured for it: this machine's time unless it is `timed`, schedules on `samples`."""
    model, processor, _ = load_model(str(folder))
    getattr(model, "quota_pruner").detach()  # noqa: B009 (the class knows no such attribute)
    tokens, text_config = measured.reference_tokens, model.config.get_text_config()
    if not timed:
        inputs = typical_inputs(model, processor, measured.prompt, tokens)
        clock = prefill_clock(model, inputs, tokens, measured.scheme, measured.scorer)
        measured = measured.model_copy(update={"clock": clock})
    if samples is None:
        return choose(budget, measured, text_config), measured
    drops = Drops(model, processor, samples, measured.scheme, tokens)
    meter.plan(TRIED)
    if budget.final is not None:
        measured = _with_row(measured, keep_count(budget.final, tokens), drops, meter)
    whole = Whole(partial(drops.error, scorer=measured.scorer), measured, lambda: meter.add(1))
    schedule = choose(budget, measured, text_config, whole)
    meter.add(TRIED - whole.asked)
    return schedule, whole.remembered()


def _with_row(measured: Measurements, count: int, drops: Drops, meter: Meter) -> Measurements:
    """With single cuts down to `count` tokens among those measured."""
    tokens = measured.reference_tokens
    if count == tokens or all(count in row for row in measured.errors.values()):
        return measured
    meter.plan(len(measured.errors))
    errors = {}
    for layer, row in measured.errors.items():
        errors[layer] = {**row, count: drops.error(Schedule.of_counts([(layer, count)], tokens), measured.scorer)}
        meter.add(1)
    return measured.model_copy(update={"errors": errors})


def _replace(folder: Path, older: PruningRecipe, recipe: PruningRecipe, measured: Measurements) -> None:
    """Let `folder` hold the recipe in place of the older one."""
    changed = (RECIPE_FILE, MEASUREMENTS_FILE)
    own = (*changed, MANIFEST_FILE, CARD_FILE)
    with staged_folder(folder) as stage:
        for file in folder.iterdir():
            if file.name in own and file.exists():
                # A copy: what follows writes to it.
                shutil.copy2(file, stage / file.name)
            elif file.is_dir() and not file.is_symlink():
                shutil.copytree(file, stage / file.name, symlinks=True, copy_function=_share)
            else:
                _share(file, stage / file.name)
        write_recipe(stage, recipe, measured)
        if (stage / CARD_FILE).exists():
            record_recipe(stage, older, recipe)
        reseal(stage, changed)
        for name in own:
            with suppress(FileNotFoundError):
                shutil.copymode(folder / name, stage / name)
        shutil.copymode(folder, stage)


def _share(file: str | os.PathLike[str], other: str | os.PathLike[str]) -> None:
    """Let `other` be the same file, or a copy where the file system knows no second names."""
    try:
        os.link(file, other, follow_symlinks=False)
    except OSError:
        shutil.copy2(file, other, follow_symlinks=False)
