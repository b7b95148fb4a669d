"""Write the reference suite: fixed questions in the format that `quota eval` takes.

    python -m quota_lab.reference.suite

Pictures come from seeds that neither training nor calibration uses. A picture is asked at most two questions of
each task. The seventh task takes one question a picture from the test half of easy-vqa.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image
from rich.progress import track

from quota.files import staged_folder
from quota_lab.reference import easy_vqa_path, suite_path
from quota_lab.reference.easy_vqa import EasyVQA
from quota_lab.reference.pictures import draw
from quota_lab.reference.questions import TASKS, Question, ask

QUESTIONS = 1000
PER_PICTURE = 2


def write_suite(folder: Path, questions: int = QUESTIONS, seed: int = 0) -> None:
    """Write `questions` questions of each of the six tasks."""
    pictures = draw_questions(Random(f"suite {seed}"), questions)
    _write(folder, pictures, "webp", lossless=True, quality=100, method=6)


def draw_questions(rng: Random, questions: int) -> list[tuple[Image.Image, list[Question]]]:
    """Pictures with what is asked about each, `questions` of each of the six tasks in all."""
    missing = dict.fromkeys(TASKS, questions)
    pictures: list[tuple[Image.Image, list[Question]]] = []
    while any(missing.values()):
        image, scene = draw(rng)
        asked = [ask(task, scene, rng) for task in TASKS for _ in range(min(PER_PICTURE, missing[task]))]
        kept = list(dict.fromkeys(question for question in asked if question is not None))
        for question in kept:
            missing[question.task] -= 1
        if kept:
            pictures.append((image, kept))
    return pictures


def write_easy_vqa(folder: Path, questions: int = QUESTIONS, seed: int = 0) -> None:
    """Write one question a picture from the test half of easy-vqa."""
    rng, test = Random(f"easy-vqa {seed}"), EasyVQA("test")
    pictures = []
    for number in test.pictures[:questions]:
        pictures.append((test.original(number), [rng.choice(test.questions[number])]))
    _write(folder, pictures, "png", optimize=True)


def _write(folder: Path, pictures: list[tuple[Image.Image, list[Question]]], kind: str, **how: Any) -> None:
    with staged_folder(folder) as stage:
        (stage / "images").mkdir()
        lines = []
        for number, (image, questions) in enumerate(track(pictures, description=f"writing {folder.name}")):
            name = f"images/{number:04d}.{kind}"
            image.save(stage / name, **how)
            for one in questions:
                lines.append(json.dumps({"image": name, "question": one.text, "answer": one.answer, "task": one.task}))
        (stage / "questions.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    write_suite(suite_path())
    write_easy_vqa(easy_vqa_path())
