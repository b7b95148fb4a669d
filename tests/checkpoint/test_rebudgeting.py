"""Another budget for a checkpoint: the recipe that `compress` would have found, in its place whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.tiny_llava import VISUAL_TOKENS, make_model, make_samples, processor
from transformers import AutoModelForImageTextToText

import quota
from quota import PruningRecipe, QuotaError
from quota.allocation.clock import Clock
from quota.allocation.measurements import Measurements
from quota.checkpoint import rebudgeting
from quota.checkpoint.card import CARD_FILE, record_retention
from quota.checkpoint.described import described
from quota.checkpoint.lock import writing
from quota.checkpoint.manifest import MANIFEST_FILE, verify
from quota.checkpoint.save import MEASUREMENTS_FILE, RECIPE_FILE

SAMPLES = make_samples(6)
CLOCK = Clock(rest=10.0, layer=1.0, cut=0.5, depth=6, full=16.0, machine="an abacus")


@pytest.fixture
def out(quota_folder: Path, tmp_path: Path) -> Path:
    """A checkpoint of its own, calibrated on `SAMPLES`."""
    return Path(shutil.copytree(quota_folder, tmp_path / "out"))


def compressed(**options: Any) -> Any:
    return quota.compress(make_model(), processor(), SAMPLES, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def change(folder: Path, **changes: Any) -> Measurements:
    """Other measurements for a checkpoint, without a manifest that would know."""
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    measured = Measurements.load(folder / MEASUREMENTS_FILE).model_copy(update=changes)
    measured.save(folder / MEASUREMENTS_FILE)
    return measured


@pytest.mark.parametrize(
    "budget",
    [{"keep": 0.3, "compute": 0.5}, {"kv_bytes": 5000}, {"keep": 0.2}],
    ids=str,
)
def test_the_recipe_is_the_one_that_compress_finds_from_these_measurements(budget: dict[str, Any], out: Path) -> None:
    result = compressed(**budget)
    # All that this compression measured, and its recipe for it; in OUT stands another recipe.
    result.measurements.save(out / MEASUREMENTS_FILE)
    (out / MANIFEST_FILE).unlink()
    assert quota.rebudget(out, **budget) == result.recipe == PruningRecipe.load(out / RECIPE_FILE)


def test_with_the_samples_it_is_the_one_that_compress_finds(out: Path) -> None:
    budget = {"compute": 0.35}
    steps: list[tuple[int, int]] = []
    recipe = quota.rebudget(
        out, **budget, samples=SAMPLES[::-1], progress=lambda done, total: steps.append((done, total))
    )
    expected = compressed(**budget)
    assert recipe == expected.recipe
    assert steps[-1][0] == steps[-1][1]
    # What was measured is remembered, beside what was known.
    whole = Measurements.load(out / MEASUREMENTS_FILE).whole()
    assert expected.measurements.whole().items() <= whole.items()
    assert quota.rebudget(out, **budget) == recipe


def test_a_ratio_that_was_not_measured_is_measured_where_the_samples_are(out: Path) -> None:
    quota.rebudget(out, 0.72, samples=SAMPLES)
    rows = Measurements.load(out / MEASUREMENTS_FILE).errors
    same = compressed(keep=0.72).measurements.errors
    assert all(row[12] == same[layer][12] for layer, row in rows.items())
    assert quota.rebudget(out, 0.72).keep == 0.72


def test_the_checkpoint_stays_one(out: Path) -> None:
    (out / "notes").mkdir()
    (out / "notes" / "mine.txt").write_text("my own")
    (out / "link.png").symlink_to("notes/mine.txt")
    record_retention(out, 0.9, (0.8, 1.0), "original", "suite", 100)
    before, weights = contents_of_files(out), (out / "model.safetensors").stat()
    recipe = quota.rebudget(out, 0.1)
    assert recipe.counts(VISUAL_TOKENS)[-1] == 2
    after = contents_of_files(out)
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert changed == {RECIPE_FILE, MANIFEST_FILE, "README.md"}
    assert verify(out) and (out / "link.png").is_symlink() and (out / "notes" / "mine.txt").read_text() == "my own"
    # The very same weights, not a copy of them.
    assert (out / "model.safetensors").stat().st_ino == weights.st_ino
    assert [file.name for file in out.parent.iterdir()] == [out.name]
    card = (out / "README.md").read_text()
    assert "# LlavaForConditionalGeneration, W4A4KV4, 10% of visual tokens" in card
    assert "- **Visual tokens: 10% kept.** Of 16 visual tokens there remain" in card
    assert "90.0%" not in card and "- **Retention: not measured.**" in card
    model: Any = AutoModelForImageTextToText.from_pretrained(out)
    assert model.quota_pruner.recipe == recipe


def contents_of_files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_the_same_budget_again_changes_nothing(out: Path) -> None:
    record_retention(out, 0.9, (0.8, 1.0), "original", "suite", 100)
    before, place = contents(out), out.stat().st_ino
    quota.rebudget(out, 0.3)
    assert contents(out) == before and out.stat().st_ino == place


def test_damaged_weights_stay_damaged(out: Path) -> None:
    file = out / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    quota.rebudget(out, 0.1)
    with pytest.raises(QuotaError, match=r"model\.safetensors is damaged"):
        verify(out)


def test_without_second_names_files_are_copied(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    before = contents(out)
    quota.rebudget(out, 0.1)
    assert verify(out) and contents(out)["model.safetensors"] == before["model.safetensors"]


def test_time_is_taken_where_it_was_not(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[int] = []
    scored: list[str] = []

    def clock(model: Any, inputs: Any, tokens: int, scheme: Any, scorer: str) -> Clock:
        scored.append(scorer)
        timed.append(int((inputs["input_ids"] == model.config.image_token_id).sum()))
        return CLOCK

    monkeypatch.setattr(rebudgeting, "prefill_clock", clock)
    recipe = quota.rebudget(out, milliseconds=13.0)
    assert scored == [recipe.scorer]
    assert timed == [VISUAL_TOKENS] and Measurements.load(out / MEASUREMENTS_FILE).clock == CLOCK
    # This is not the machine that was timed.
    quota.rebudget(out, milliseconds=14.0)
    assert len(timed) == 2
    monkeypatch.setattr(rebudgeting, "machines", lambda: ["a slide rule", "an abacus"])
    assert quota.rebudget(out, milliseconds=13.0) == recipe
    assert len(timed) == 2 and verify(out)
    with pytest.raises(QuotaError, match="out of reach"):
        quota.rebudget(out, milliseconds=9.0)


def without(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / MANIFEST_FILE).unlink()
        (folder / name).unlink()

    return spoil


def damaged(folder: Path) -> None:
    file = folder / MEASUREMENTS_FILE
    file.write_text(file.read_text().replace('"scorer": "', '"scorer": "x', 1))


def of_another_scorer(folder: Path) -> None:
    change(folder, scorer="fastv")


def of_another_model(folder: Path) -> None:
    change(folder, model_fingerprint="f" * 64)


def unpruned(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quota"]["recipe"] = False
    (folder / "config.json").write_text(json.dumps(config))
    (folder / MANIFEST_FILE).unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(
            without(MEASUREMENTS_FILE), "holds no measurements.json .* compress the original", id="an older one"
        ),
        pytest.param(damaged, "is damaged|is not whole", id="damaged"),
        pytest.param(of_another_model, r"of another model \(fingerprint ffffffffffff", id="another model's"),
        pytest.param(of_another_scorer, r"scores tokens by '\w+', but drops were measured by 'fastv'", id="scorer"),
        pytest.param(unpruned, "keeps every visual token", id="without a recipe"),
        pytest.param(without("config.json"), "was not written by quota", id="not ours"),
    ],
)
def test_what_cannot_be_changed_is_one_line_and_left_alone(
    spoil: Callable[[Path], Any], message: str, out: Path
) -> None:
    spoil(out)
    before = contents(out)
    with pytest.raises(QuotaError, match=message) as raised:
        quota.rebudget(out, 0.1)
    assert "\n" not in str(raised.value)
    assert contents(out) == before and [file.name for file in out.parent.iterdir()] == [out.name]


def test_what_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    for use in (lambda: quota.rebudget(tmp_path / "nosuch", 0.1), lambda: described(tmp_path / "nosuch")):
        with pytest.raises(QuotaError, match=r"nosuch does not exist; give a checkpoint that `quota compress` wrote"):
            use()
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "there is no new budget; give keep"),
        ({"compute": 0.5, "kv_bytes": 10}, "2 budgets"),
        ({"keep": 2.0}, "keep must be"),
        ({"compute": 0.01}, "no schedule keeps to this budget"),
        ({"kv_bytes": 100}, "100 bytes is out of reach"),
        ({"keep": 0.01, "samples": SAMPLES[:3]}, "these 3 samples are not the 6"),
    ],
)
def test_budgets_that_cannot_be_are_one_line(budget: dict[str, Any], message: str, out: Path) -> None:
    before = contents(out)
    with pytest.raises(QuotaError, match=message):
        quota.rebudget(out, **budget)
    assert contents(out) == before


def test_a_loaded_model_saves_what_it_was_loaded_with(out: Path, tmp_path: Path) -> None:
    model: Any = AutoModelForImageTextToText.from_pretrained(out)
    quota.save_pretrained(model, processor(), tmp_path / "again")
    assert (tmp_path / "again" / MEASUREMENTS_FILE).read_bytes() == (out / MEASUREMENTS_FILE).read_bytes()
    assert quota.rebudget(tmp_path / "again", 0.1) == quota.rebudget(out, 0.1)
    of_another_model(out)
    with pytest.raises(QuotaError, match="the measurements are of another model"):
        AutoModelForImageTextToText.from_pretrained(out)


def test_the_published_method_measures_no_drops(tmp_path: Path) -> None:
    model = make_model()
    quota.compress(model, processor(), SAMPLES[:2], method="paper")
    quota.save_pretrained(model, processor(), tmp_path / "paper")
    assert not (tmp_path / "paper" / MEASUREMENTS_FILE).exists()
    with pytest.raises(QuotaError, match="or with method paper; compress the original model again"):
        quota.rebudget(tmp_path / "paper", 0.1)


@pytest.mark.slow
def test_the_bundled_model_takes_less_than_five_seconds(reference_folder: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(reference_folder, tmp_path / "out"))
    for budget in ({"keep": 0.2}, {"compute": 0.35}, {"kv_bytes": 200_000}):
        began = time.process_time()
        quota.rebudget(out, **budget)
        assert time.process_time() - began < 5


def test_while_another_run_writes_the_folder_it_is_refused(out: Path) -> None:
    before = contents(out)
    with writing(out), pytest.raises(QuotaError, match=f"another run is writing {out}"):
        quota.rebudget(out, 0.2)
    assert contents(out) == before
    assert quota.rebudget(out, 0.2).keep == 0.2


def test_without_a_card_there_is_none_afterwards(out: Path) -> None:
    (out / CARD_FILE).unlink()
    assert quota.rebudget(out, 0.2).keep == 0.2
    assert not (out / CARD_FILE).exists()
