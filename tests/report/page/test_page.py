"""The page as a whole: its figures are those of the commands, and nothing in a question gets out of its place."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.commands import call
from support.tiny_llava import make_model, make_samples, processor

from quota.allocation.clock import Clock
from quota.allocation.measurements import Measurements
from quota.checkpoint.save import save_pretrained
from quota.compress import quantize_only
from quota.errors import QuotaError
from quota.pruning.recipe import PruningRecipe
from quota.report.page import svg
from quota.report.page.asked import Suite
from quota.report.page.gather import gather
from quota.report.page.render import render, write_report
from quota.samples import read_samples
from quota.scheme import QuantizationScheme

from .conftest import QUESTION, TASKS, Document

pytestmark = pytest.mark.slow


def looked_up(figures: Any, name: str) -> Any:
    """What JSON has under a dotted name; the name of a task may hold dots."""
    while name:
        if isinstance(figures, dict) and name in figures:
            return figures[name]
        first, _, name = name.partition(".")
        figures = figures[int(first) if isinstance(figures, list) else first]
    return figures


def test_figures_are_those_of_the_commands(
    document: Document, quota_folder: Path, full_folder: Path, hostile_suite: Path, tmp_path: Path
) -> None:
    told = {name: tmp_path / f"{name}.json" for name in ("inspect", "eval", "baseline")}
    copied = shutil.copytree(quota_folder, tmp_path / "copy")
    compared = ("--suite", hostile_suite, "--baseline", full_folder)
    assert call("inspect", copied, "--json", told["inspect"]) == 0
    assert call("eval", copied, *compared, "--json", told["eval"]) == 0
    assert call("eval", full_folder, "--suite", hostile_suite, "--json", told["baseline"]) == 0
    figures = {name: json.loads(file.read_text()) for name, file in told.items()}
    shown = [(one["data-figure"], one["value"], text) for one, text in document.all("data")]
    for name, value, text in shown:
        # As XML, a document has no vertical tabs.
        expected = looked_up(figures, name.replace("\ufffd", "\x0b"))
        assert float(value) == expected, name
        number = float(re.findall(r"[\d.]+(?:e-?\d+)?", text)[0])
        scale = next((scale for unit, scale in ((" KB", 1e-3), (" MB", 1e-6), ("%", 100)) if text.endswith(unit)), None)
        shares = name.startswith(("eval.a", "eval.i", "eval.r", "baseline."))
        assert number == pytest.approx(expected * (scale or (100 if shares else 1)), rel=0.01, abs=0.051), name
    names = {name for name, _, _ in shown}
    assert {"eval.average", "eval.retention_interval.1", "inspect.disk_bytes", "inspect.chosen.kv_bytes"} <= names
    assert len([name for name in names if name.endswith(".error")]) == len(figures["inspect"]["frontier"]) + 1
    # The digests as well.
    manifest = json.loads((quota_folder / "manifest.json").read_text())["files"]
    codes = {text for _, text in document.all("code")}
    assert {entry["sha256"] for entry in manifest.values()} <= codes


def test_what_others_wrote_stays_text(page: str, document: Document) -> None:
    assert [text for _, text in document.all("script")] == [
        (Path(svg.__file__).parent / "page.js").read_text(encoding="utf-8")
    ]
    assert "alert(1)" in page and "<script>alert" not in page and "<img src=x" not in page
    assert QUESTION.replace("\x00", "\ufffd") in {text for _, text in document.all("h3")}
    assert {text for _, text in document.all("bdi")} >= {TASKS[0], "</td><b>", "<i>suite&amp;"}
    assert not any(name.startswith("on") for _, attributes, _ in document.elements for name in attributes)


def test_nothing_is_loaded(page: str, document: Document) -> None:
    assert not re.findall(r"https?:|@import|<link|<base|<iframe|<object|<embed|srcset|xlink", page)
    assert all(one["src"].startswith("data:image/webp;base64,") for one, _ in document.all("img"))
    inside = [one["href"] for one, _ in document.all("a", "use")]
    assert inside and all(target.startswith("#") for target in inside)
    # Of style and plots: references to what stands in the same document.
    identifiers = {attributes["id"] for _, attributes, _ in document.elements if "id" in attributes}
    urls = re.findall(r"url\(([^)]*)\)", page)
    assert all(url.startswith("#") and url[1:] in identifiers for url in urls)
    assert {target[1:] for target in inside} <= identifiers
    policy = next(one["content"] for one, _ in document.all("meta") if "http-equiv" in one)
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_it_is_well_formed(page: str, document: Document) -> None:
    assert document.wrong == []
    identifiers = [attributes["id"] for _, attributes, _ in document.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for _, attributes, _ in document.elements:
        named = [*attributes.get("aria-labelledby", "").split(), attributes.get("for", "")]
        assert {one for one in named if one} <= set(identifiers)
    assert all("alt" in one for one, _ in document.all("img"))
    drawn = document.all("svg")
    assert len(drawn) >= 7 and all(one["role"] == "img" for one, _ in drawn)
    assert len(document.all("desc")) == len(drawn) and all(text for _, text in document.all("desc", "title"))


def test_a_strict_parser_has_nothing_to_say(page: str) -> None:
    html5lib = pytest.importorskip("html5lib", reason="html5lib is not installed; the extra dev has it")
    html5lib.HTMLParser(strict=True).parse(page)


def test_its_size_and_twice_the_same(
    file: Path, quota_folder: Path, full_folder: Path, hostile_suite: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.html"
    assert call("report", quota_folder, "--suite", hostile_suite, "--baseline", full_folder, "-o", again) == 0
    assert again.read_bytes() == file.read_bytes()
    assert len(file.read_bytes()) < 3_000_000


def test_without_a_suite_or_a_baseline_it_says_what_is_missing(
    quota_folder: Path, suite_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = Path(shutil.copytree(quota_folder, tmp_path / "copy"))
    assert call("report", copied) == 0
    page = (tmp_path / "copy.html").read_text(encoding="utf-8")
    assert "No questions were asked, so accuracy and retention are not known" in page
    assert "No questions were asked, so no pictures are shown" in page and "<img" not in page
    assert "no questions were asked; --suite" in " ".join(capsys.readouterr().err.split())
    assert Document(page).wrong == []

    samples = read_samples(suite_folder)
    alone = render(gather(copied, Suite("s", samples[:2], len(samples))))
    assert "Full precision was not at hand" in alone and "Answers in full precision are missing" in alone
    assert "the first of each task (8 in all)" in alone
    assert "eval.retention" not in alone and "Milliseconds are missing" in alone


def test_a_checkpoint_without_measurements_or_manifest(quota_folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(quota_folder, tmp_path / "copy"))
    for name in ("manifest.json", "measurements.json"):
        (copied / name).unlink()
    page = render(gather(copied))
    assert "The checkpoint holds no measurements." in page and "There is no manifest" in page
    assert Document(page).wrong == []


def test_a_write_that_fails_leaves_nothing(quota_folder: Path, tmp_path: Path) -> None:
    report = gather(quota_folder)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(QuotaError, match="cannot write"):
        write_report(report, tmp_path / "file" / "report.html")
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param(["{full}"], "not written by quota", id="not compressed"),
        pytest.param(["nothing"], "does not exist", id="not there"),
        pytest.param(["{small}", "-o", "{suite}"], "is a folder", id="a folder as output"),
        pytest.param(["{small}", "-o", "0.png/report.html"], "is no folder to write to", id="a file as folder"),
        pytest.param(["{small}", "--suite", "nothing"], "there is no suite nothing", id="no such suite"),
        pytest.param(["{small}", "--suite", "{suite}", "--baseline", "none"], "no model folder none", id="no baseline"),
        pytest.param(["{small}", "--suite", "bare.jsonl"], "has no answer", id="questions without answers"),
    ],
)
def test_bad_input_is_one_line(
    options: list[str],
    says: str,
    quota_folder: Path,
    full_folder: Path,
    suite_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(suite_folder / "0.png", tmp_path)
    (tmp_path / "bare.jsonl").write_text('{"image": "0.png", "question": "what"}\n')
    there = set(tmp_path.iterdir())
    named = {"full": full_folder, "small": quota_folder, "suite": suite_folder}
    written = ["-o", "report.html"] if "-o" not in options else []
    assert call("report", *(option.format(**named) for option in options), *written) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("quota:")]
    assert says in line
    assert set(tmp_path.iterdir()) == there


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_what_is_not_installed_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svg, "find_spec", lambda name: None if name == package else name)
    with pytest.raises(QuotaError, match=rf"needs {package}; .*pip install 'quota-vlm\[report\]'"):
        svg.require_extra()


def test_its_script_runs_in_a_browser(file: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium to open the page with")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", file.as_uri()]
    shown = Document(subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout)
    [slider] = [one for one, _ in shown.all("input")]
    # Set by the script, which the page's policy lets run by its digest alone.
    assert slider["aria-valuetext"] == "entering layer 5" and "disabled" not in slider


def test_the_bundled_model_has_its_suite_and_its_original(reference_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    assert call("report", reference_folder, "--limit", 2, "-o", file) == 0
    page = file.read_text(encoding="utf-8")
    document = Document(page)
    assert document.wrong == [] and len(page.encode()) < 3_000_000
    assert len(document.all("article")) == 12
    assert {text for _, text in document.all("th")} >= {"full precision", "quantised", "QUOTA"}
    assert "Milliseconds are missing" in page and "eval.retention" in page


def test_time_is_told_where_a_machine_was_timed(quota_folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(quota_folder, tmp_path / "copy"))
    (copied / "manifest.json").unlink()
    timed = Measurements.load(copied / "measurements.json").model_copy(update={"clock": Clock(10, 1, 0.5, 6, 16, "m")})
    timed.save(copied / "measurements.json")
    report = gather(copied)
    document = Document(page := render(report))
    assert document.wrong == [] and "Milliseconds are missing" not in page and "plot-frontier-time" in page
    chosen = report.inspection.chosen
    assert chosen is not None and chosen.milliseconds is not None
    rows = re.findall(r'<th scope="row">([^<]*)</th><td class="number">([\d.]+)</td></tr>', page)
    parts = dict(rows)
    assert float(parts["with all visual tokens"]) == 16.0 and float(parts["tower, projector, text"]) == 10.0
    spent = ("tower, projector, text", "visual tokens in the decoder", "cuts")
    assert sum(float(parts[name]) for name in spent) == pytest.approx(chosen.milliseconds, abs=0.15)
    assert f'data-figure="inspect.chosen.milliseconds" value="{chosen.milliseconds}"' in page


def test_a_cut_before_the_first_layer_has_a_place_of_its_own_on_the_slider(
    quota_folder: Path, suite_folder: Path, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(quota_folder, tmp_path / "copy"))
    (copied / "manifest.json").unlink()
    recipe = PruningRecipe.load(copied / "recipe.json")
    changed = recipe.model_dump() | {"layers": (-1, 2), "keep_ratios": (0.5, 0.25), "keep": 0.25, "sensitivities": ()}
    PruningRecipe(**changed).save(copied / "recipe.json")
    samples = read_samples(suite_folder)[:1]
    page = render(gather(copied, Suite("s", samples, 1)))
    [slider] = [one for one, _ in Document(page).all("input")]
    assert (slider["min"], slider["max"], slider["value"]) == ("-1", "5", "5")
    assert re.findall(r'data-first="(-?\d+)" data-kept="(\d+)"', page) == [("0", "8"), ("3", "4")]


def test_a_checkpoint_that_keeps_every_token(suite_folder: Path, tmp_path: Path) -> None:
    model, tools = make_model(), processor()
    quantize_only(model, tools, make_samples(2), scheme=QuantizationScheme(weight_rounding="rtn"))
    save_pretrained(model, tools, tmp_path / "small")
    page = render(gather(tmp_path / "small", Suite("s", read_samples(suite_folder)[:2], 2)))
    document = Document(page)
    assert document.wrong == [] and document.all("input") == []
    assert "There is no recipe: every visual token enters every decoder layer." in page
    assert "16 of 16 tokens" in page and 'class="veil' not in page
