"""Every class through every command, with its own processor: saved, compressed, asked, measured, drawn."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.commands import call
from support.families.own import OWN

from quota.checkpoint.named import load_model
from quota.models import FAMILIES
from quota.models.support import VIDEO
from quota.prompts import build_inputs
from quota.pruning.recipe import PruningRecipe

from .conftest import FRAMES, SAMPLES

pytestmark = pytest.mark.slow

PICTURES = {"one picture": ["0.png"], "two pictures": ["0.png", "1.png"]}


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures and the video of the samples, and two suites of questions about them."""
    folder = tmp_path_factory.mktemp("files")
    for number, picture in enumerate(SAMPLES["two pictures"].pictures()):
        picture.save(folder / f"{number}.png")
    first, *others = SAMPLES[VIDEO].pictures()
    first.save(folder / "clip.gif", save_all=True, append_images=others)
    suite(folder / "pictures.jsonl", {"image": "0.png"}, {"image": ["0.png", "1.png"]}, {"image": "1.png"})
    suite(folder / "both.jsonl", {"image": "0.png"}, {"video": "clip.gif"}, {"image": ["1.png", "0.png"]})
    return folder


def suite(file: Path, *subjects: dict[str, Any]) -> None:
    lines = [{**subject, "question": f"w{20 + number}", "answer": "w9"} for number, subject in enumerate(subjects)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="session")
def full(name: str, own: Any, model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as its makers would have saved it."""
    folder = tmp_path_factory.mktemp(name) / "full"
    model.save_pretrained(folder)
    own.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small(name: str, full: Path, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `quota compress` makes of it, calibrated on pictures and, where the class takes them, on videos."""
    out = tmp_path_factory.mktemp(name) / "small"
    questions = files / ("both.jsonl" if VIDEO in FAMILIES[name].prompts else "pictures.jsonl")
    assert call("compress", full, out, "--calibration", questions, "--samples", 3) == 0
    return out


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quota.cli.questions.LONGEST_ANSWER", 6)


def about(files: Path, case: str) -> list[object]:
    """The options that name the pictures of a case."""
    if case == VIDEO:
        return ["--video", files / "clip.gif"]
    return [word for name in PICTURES[case] for word in ("--image", files / name)]


def test_inspect(name: str, small: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    assert call("inspect", small, "--json", figures) == 0
    assert json.loads(figures.read_text())["quantized_layers"] > 0


def test_run(name: str, case: str, small: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", small, *about(files, case), "w20 w21") == 0
    assert capsys.readouterr().out.strip()


def test_eval_in_batches(name: str, small: Path, files: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    kind = "both" if VIDEO in FAMILIES[name].prompts else "pictures"
    assert call("eval", small, "--suite", files / f"{kind}.jsonl", "--batch-size", 2, "--json", figures) == 0
    assert json.loads(figures.read_text())["questions"] == 3


def test_explain(name: str, case: str, small: Path, files: Path, tmp_path: Path) -> None:
    figures, drawn = tmp_path / "figures.json", tmp_path / "kept.png"
    options = ("--question", "w20 w21", "--output", drawn, "--json", figures)
    assert call("explain", small, *about(files, case), *options) == 0
    told = json.loads(figures.read_text())
    _, processor, _ = load_model(str(small))
    ids = build_inputs(processor, [SAMPLES[case]])["input_ids"]
    assert len(told["boxes"]) == told["visual_tokens_per_layer"][0] >= int((ids == 3).sum())
    shown = {box["picture"] for box in told["boxes"] if box is not None}
    assert max(shown) + 1 <= FRAMES and len(shown) >= (1 if case == "one picture" else 2)
    for kept in told["kept"].values():
        assert kept == sorted(set(kept)) and max(kept) < len(told["boxes"])
    with Image.open(drawn) as picture:
        # A row of panels for each picture or frame, of 173 pixels at least, above the plot.
        assert picture.height > 320 + 173 * len(shown)


def test_report(name: str, small: Path, full: Path, files: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    videos = VIDEO in FAMILIES[name].prompts
    suite = files / ("both.jsonl" if videos else "pictures.jsonl")
    assert call("report", small, "--suite", suite, "--baseline", full, "-o", page) == 0
    text = page.read_text(encoding="utf-8")
    shown = [len(re.findall("<figure data-frame", article)) for article in text.split("<article")[1:]]
    # One picture, all frames of the clip (a token may stand for two), two pictures, in the order of the file.
    assert shown[0] == 1 and sum(shown) >= (1 + 2 + 2 if videos else 1 + 2 + 1)
    # Every picture has a veil for every cut, and some tokens.
    cuts = len(PruningRecipe.load(small / "recipe.json").layers)
    assert len(re.findall('class="veil', text)) == cuts * sum(shown)
    frames = re.findall(r'data-frame="(\d+)"', text)
    assert all(int(tokens) > 0 for tokens in frames)
    assert len(page.read_bytes()) < 3_000_000


def test_a_video_is_refused_by_a_class_that_takes_none(
    name: str, small: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if VIDEO not in FAMILIES[name].prompts:
        assert call("run", small, "--video", files / "clip.gif", "w20") == 1
        assert "takes no videos; give frames of it as several pictures" in capsys.readouterr().err


def test_every_supported_class_has_its_processor() -> None:
    assert list(OWN) == list(FAMILIES)
