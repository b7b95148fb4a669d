"""Which questions are shown, and what is said of each."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from quota.checkpoint.named import load_model
from quota.evaluation import evaluate, footprint, retention
from quota.prompts import answer
from quota.report.page.asked import FULL, QUANTISED, QUOTA, Suite, ask, several_of_each_task
from quota.samples import Sample, read_samples


def test_tasks_take_turns_and_pictures_are_not_shown_twice() -> None:
    a, b, c = (Image.new("RGB", (4, 4), colour) for colour in ("red", "green", "blue"))
    asked = [(a, "one"), (a, "one"), (b, "one"), (a, "two"), (c, "two"), (a, None)]
    samples = [Sample(picture, str(number), task=task) for number, (picture, task) in enumerate(asked)]
    assert [one.question for one in several_of_each_task(samples, 4)] == ["0", "4", "5", "2"]
    # Where no picture is left, one that was shown.
    assert [one.question for one in several_of_each_task(samples, 9)] == ["0", "4", "5", "2", "3", "1"]


@pytest.mark.slow
def test_answers_are_those_of_each_variant(quota_folder: Path, full_folder: Path, suite_folder: Path) -> None:
    samples = read_samples(suite_folder)
    steps: list[str] = []
    found = ask(quota_folder, Suite("s", samples, 8), str(full_folder), progress=lambda step, *_: steps.append(step))
    assert steps[0] == "answering" and any("full" in step for step in steps)
    model, processor, _ = load_model(str(quota_folder))
    original, _, _ = load_model(str(full_folder))
    ours, theirs = (evaluate(one, processor, samples).outcomes for one in (model, original))
    assert found.evaluation.outcomes == ours and found.original is not None and found.original.outcomes == theirs
    assert found.retention == retention(ours, theirs)
    assert found.footprints[QUOTA] == footprint(model, processor, samples[0])
    told = {QUOTA: [answer(model, processor, one.sample) for one in found.shown]}
    model.quota_pruner.detach()  # pyright: ignore[reportAttributeAccessIssue]
    told[QUANTISED] = [answer(model, processor, one.sample) for one in found.shown]
    told[FULL] = [answer(original, processor, one.sample) for one in found.shown]
    assert {name: [one.answers[name] for one in found.shown] for name in told} == told
    assert found.footprints[QUANTISED] == footprint(model, processor, samples[0])
    # In "easy" the original is always right.
    kept = found.task_retention("easy")
    assert kept is not None and kept[0] == found.evaluation.accuracy["easy"]
