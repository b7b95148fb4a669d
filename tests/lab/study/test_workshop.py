"""A study of the tiny model: what is asked once is not asked again, and every kind of variant runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny_llava import LAYERS, VISUAL_TOKENS, make_samples

from quota.allocation.clock import Clock
from quota.cli import main
from quota.errors import QuotaError
from quota.pruning.pruner import Pruner
from quota.samples import read_samples
from quota.scheme import QuantizationScheme
from quota_lab import reference
from quota_lab.cli.study import _command
from quota_lab.study import workshop as module
from quota_lab.study.run import Study
from quota_lab.study.tables import FULL, JOINT, TABLES, table
from quota_lab.study.variants import MEASURED, Pruning, Variant
from quota_lab.study.workshop import Workshop

pytestmark = pytest.mark.slow


def silent(step: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def workshop(full_folder: Path, suite_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    cache = tmp_path_factory.mktemp("study")
    return Workshop(str(full_folder), read_samples(suite_folder), make_samples, cache, silent)


OURS = Pruning(scorer="information", schedule="measured", keep=None, compute=0.5)
VARIANTS = {
    "full precision": Variant(scheme=None, samples=4),
    "quantised": Variant(samples=4),
    "pruned": Variant(scheme=None, pruning=Pruning(layers=(1, 3)), samples=4),
    "both": Variant(pruning=Pruning(layers=(1, 3)), samples=4),
    "prune, then quantise": Variant(pruning=Pruning(layers=(1, 3), weights={"inter": 1.0}), graph="pruned", samples=4),
    "joint": Variant(pruning=Pruning(layers=(1, 3)), graph="joint", samples=4),
    "joint, 3 rounds": Variant(pruning=OURS, graph="joint", rounds=3, samples=4),
    "scored in full precision": Variant(
        pruning=Pruning(layers=(1, 3), weights={"inter": 1.0}, scoring="full precision"), samples=4
    ),
    "measured": Variant(pruning=OURS, samples=4),
    "added up": Variant(pruning=OURS.model_copy(update={"schedule": "added up"}), samples=4),
    "first word": Variant(pruning=OURS.model_copy(update={"schedule": "first word"}), samples=4),
    "before the decoder": Variant(pruning=Pruning(scorer="visionzip", layers=(-1,), schedule="one-shot"), samples=4),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_variant(name: str, workshop: Workshop) -> None:
    variant = VARIANTS[name]
    found = workshop.outcome(variant)
    assert {task: len(right) for task, right in found.right.items()} == {"easy": 4, "hard": 4}
    assert (found.cost < 1) == (variant.pruning is not None)
    ours = variant.pruning is not None and variant.pruning.schedule in MEASURED
    if not ours:
        assert found.tokens_per_layer[0] == (5 if name == "before the decoder" else VISUAL_TOKENS)
    assert not ours or found.cost <= 0.5
    if variant == VARIANTS["full precision"]:
        assert all(found.right["easy"])


def test_a_budget_of_time_is_kept_by_a_clock_that_is_read_once(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A tiny model's prefill does not tell what its visual tokens cost, so the clock is given.
    asked: list[str] = []

    def clock(*_: Any) -> Clock:
        asked.append("clock")
        return Clock(rest=10.0, layer=1.0, cut=0.1, depth=LAYERS, full=10.0 + LAYERS)

    def taken(model: Any, inputs: Any, pruners: list[list[Pruner]], turns: int) -> list[float]:
        recipes = [pruner.recipe for together in pruners for pruner in together]
        asked.append(recipes[0].scorer)
        return [10.0 + LAYERS, *(10.5 + LAYERS * recipe.keep for recipe in recipes)]

    monkeypatch.setattr(module, "prefill_clock", clock)
    monkeypatch.setattr(module, "prefill_milliseconds", taken)
    ours = Pruning(scorer="information", schedule="measured", keep=None, prefill=0.8)
    other = Pruning(scorer="divprune", layers=(-1,), schedule="one-shot", keep=None, prefill=0.8)
    for _ in range(2):
        for pruning in (ours, other):
            found = workshop.outcome(Variant(pruning=pruning, samples=4))
            assert found.cost <= (0.8 * (10 + LAYERS) - 10) / LAYERS
        workshop.measured(Variant(pruning=ours, samples=4)).clock()
    assert asked == ["clock", "divprune"]


def test_drops_are_measured_by_the_score_that_cuts(workshop: Workshop) -> None:
    found = {}
    for name in ("information", "divprune"):
        pruning = Pruning(scorer=name, schedule="measured", keep=None, compute=0.5)
        found[name] = workshop.measured(Variant(pruning=pruning, samples=4))
    assert found["information"].errors != found["divprune"].errors


def test_variants_of_one_model_are_timed_in_turns(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[list[int]] = []

    def taken(model: Any, inputs: Any, pruners: list[list[Pruner]], turns: int) -> list[float]:
        groups.append([len(together) for together in pruners])
        return [1000.0 * len(groups) + len(together) for together in pruners]

    monkeypatch.setattr(module, "prefill_milliseconds", taken)
    both, guided = VARIANTS["both"], VARIANTS["scored in full precision"]
    found = workshop.prefills([both, VARIANTS["full precision"], both.model_copy(update={"pruning": None}), guided], 3)
    # The model that guides another has a Pruner too.
    assert groups == [[1, 0, 2], [0]]
    assert found == [1.001, 2.0, 1.0, 1.002]


def test_an_outcome_is_read_from_the_cache(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    first = workshop.outcome(VARIANTS["both"])
    monkeypatch.setattr(module, "evaluate", lambda *_, **__: pytest.fail("asked again"))
    assert workshop.outcome(VARIANTS["both"]) == first
    # Nothing is calibrated in full precision, so the seed is no part of it.
    assert workshop.outcome(VARIANTS["full precision"].model_copy(update={"seed": 3})).cost == 1


def test_what_decides_an_outcome_decides_its_name(workshop: Workshop) -> None:
    variants = [*VARIANTS.values(), Variant(samples=5), Variant(samples=4, seed=1)]
    variants.append(Variant(samples=4, scheme=QuantizationScheme(kv_bits=8)))
    assert len({workshop._keys.outcome(variant) for variant in variants}) == len(variants)


def test_full_precision_scores_choose_what_the_full_model_would(workshop: Workshop) -> None:
    """Guided by the full model, the quantised one keeps what the full model keeps."""
    from quota.prompts import build_inputs
    from quota.pruning.pruner import record

    kept = []
    for name in ("pruned", "scored in full precision"):
        variant = VARIANTS[name]
        if name == "pruned":
            pruning = VARIANTS["scored in full precision"].pruning
            variant = variant.model_copy(update={"pruning": pruning})
        with workshop._ready(variant) as (model, processor), record(model) as trace:
            model(**build_inputs(processor, workshop.questions[:3]))
            kept.append({layer: tokens.tolist() for layer, tokens in trace.kept.items()})
    assert kept[0] == kept[1]


def test_a_table_from_the_command_line(
    full_folder: Path, suite_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # The calibration of this table is too large for the tiny suite.
    title, against, rows = TABLES["stage-wise"]
    small = {name: row.model_copy(update={"samples": 4}) for name, row in rows().items()}
    monkeypatch.setitem(TABLES, "stage-wise", (title, JOINT, lambda: small))
    monkeypatch.setattr("quota_lab.study.tables.Variant", lambda **given: Variant(**{"samples": 4} | given))
    command = ["study", "stage-wise", "--model", str(full_folder), "--suite", str(suite_folder), "--seeds", "2"]
    command += ["--calibration", str(suite_folder), "--timed"]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 0
    written = json.loads((tmp_path / ".study/tables/stage-wise.json").read_text())
    names = [row["name"] for row in written["rows"]]
    assert names[0] == FULL and names[-2:] == ["QUOTA as published", JOINT] and against == JOINT
    assert all(row["prefill_seconds"] > 0 for row in written["rows"])
    text = (tmp_path / ".study/tables/stage-wise.md").read_text()
    assert "prune, then quantise" in text and "2 calibration seeds" in text
    assert (tmp_path / ".study/tables/stage-wise.png").read_bytes().startswith(b"\x89PNG")


def test_a_dry_run_loads_nothing(suite_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["study", "temperature", "--model", "llava-hf/llava-1.5-7b-hf", "--suite", str(suite_folder), "--dry-run"]
    samples = reference.suite_path() / "questions.jsonl"
    with pytest.raises(SystemExit) as ended:
        main([*words, "--calibration", str(samples)])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "llava-hf/llava-1.5-7b-hf" in said and "tau 1.25" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(["--suite", "nowhere"], "does not exist", id="no suite"),
        pytest.param(["--model", "/nowhere/at-all"], "no model folder", id="no model"),
        pytest.param(["--calibration", "nowhere.jsonl"], "does not exist", id="no calibration"),
        pytest.param(["--half", "third"], "development, reported, sealed, all", id="no such half"),
    ],
)
def test_a_dry_run_checks_what_it_names(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["study", "temperature", *options, "--dry-run"])
    assert ended.value.code == 1
    assert message in capsys.readouterr().err


def test_a_published_table_is_replaced_only_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "keep.json").write_text("published")
    with pytest.raises(SystemExit) as ended:
        main(["study", "keep", "--out", str(tmp_path)])
    assert ended.value.code == 1
    assert "--publish" in capsys.readouterr().err
    assert (tmp_path / "keep.json").read_text() == "published"


def test_an_unknown_table() -> None:
    with pytest.raises(QuotaError, match="unknown study 'luck'; known: stage-wise"):
        table("luck")


def test_a_foreign_model_needs_calibration_questions() -> None:
    with pytest.raises(QuotaError, match="give --calibration FILE"):
        Study(model="owner/name").calibration_samples(4, 0)


def test_every_table_has_the_row_that_it_compares_with() -> None:
    for name in TABLES:
        made = table(name)
        alone = [row for row in made.rows if made.rival(row) is None]
        assert FULL in made.rows and len(alone) < len(made.rows)
        assert made.against in alone or all(row.startswith(f"{made.against}, ") for row in alone[2:])


def test_methods_are_compared_at_the_same_budget() -> None:
    made = table("methods")
    assert made.rival("FastV, 25%") == "QUOTA, 25%" and made.rival("VTW, 20%") == "QUOTA, 20%"
    assert made.rival("QUOTA, 25%") is made.rival(FULL) is None
    assert table("keep").rival(FULL) == "quantised only" == table("keep").rival("QUOTA, keep 5%")


def test_a_report_names_the_command_without_folders_of_this_machine() -> None:
    default = _command("keep", Study(), timed=False)
    assert default == "quota study keep"
    other = Study("owner/name", Path("/somewhere/vqa"), None, "development", 50, 1)
    expected = "quota study keep --model owner/name --suite vqa --half development --limit 50 --seeds 1 --timed"
    assert _command("keep", other, timed=True) == expected
