"""Write questions about pictures of photographs, in the format that `quota eval` and `quota compress` take.

A picture is asked at most two questions of each task. The suite proper takes the photographs of a folder that nothing
is trained on; a part of the training folder serves calibration and development.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

from PIL import Image

from quota.files import staged_folder
from quota_lab.testbeds.vlm.camera import take
from quota_lab.testbeds.vlm.photos import Photos
from quota_lab.testbeds.vlm.pictures import draw
from quota_lab.testbeds.vlm.questions import TASKS, Question, ask

QUESTIONS = 500
PER_PICTURE = 2
Progress = Callable[[int, int], None]


def draw_suite(photos: Photos, questions: int = QUESTIONS, seed: int = 0) -> list[tuple[Image.Image, list[Question]]]:
    """Pictures with their questions, `questions` of each task in all; deterministic for a seed."""
    rng = Random(f"suite of photographs {seed}")
    missing = dict.fromkeys(TASKS, questions)
    pictures: list[tuple[Image.Image, list[Question]]] = []
    while any(missing.values()):
        image, scene = draw(photos, rng)
        asked = [ask(task, scene, rng) for task in TASKS for _ in range(min(PER_PICTURE, missing[task]))]
        kept = list(dict.fromkeys(filter(None, asked)))
        for question in kept:
            missing[question.task] -= 1
        if kept:
            pictures.append((take(image, rng), kept))
    return pictures


def write_suite(
    out: Path, photos: Photos, questions: int = QUESTIONS, seed: int = 0, progress: Progress = lambda done, total: None
) -> None:
    """Write the folder `out`: lossless pictures and `questions.jsonl`."""
    pictures = draw_suite(photos, questions, seed)
    with staged_folder(out) as stage:
        (stage / "images").mkdir()
        lines = []
        for number, (image, asked) in enumerate(pictures):
            name = f"images/{number:04d}.webp"
            image.save(stage / name, lossless=True, quality=100, method=4)
            for one in asked:
                lines.append(json.dumps({"image": name, "question": one.text, "answer": one.answer, "task": one.task}))
            progress(number + 1, len(pictures))
        (stage / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
