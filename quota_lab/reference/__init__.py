"""The reference VLM, its suite and the generator behind both: what QUOTA is tried on where no hub is at hand.

model_path()            a small LLaVA in stock layout, trained by `train.py`
suite_path()            six tasks of 1,000 fixed questions each, written by `suite.py`
easy_vqa_path()         1,000 questions of the test half of easy-vqa (PyPI, MIT), as a seventh
calibration_samples()   fresh pictures and questions, disjoint from all of the above
"""

from __future__ import annotations

from pathlib import Path
from random import Random

from quota.samples import Sample
from quota_lab.reference.pictures import draw
from quota_lab.reference.questions import TASKS, ask

_HERE = Path(__file__).parent

NAME = "reference"
"""What commands call it."""


def model_path() -> Path:
    """Folder of the checkpoint: `AutoModelForImageTextToText.from_pretrained` loads it without quota."""
    return _HERE / "model"


def suite_path() -> Path:
    """Folder of the six tasks: `questions.jsonl` and images."""
    return _HERE / "suites" / "reference"


def easy_vqa_path() -> Path:
    """Folder of the seventh task, in the same format."""
    return _HERE / "suites" / "easy-vqa"


def suites() -> dict[str, Path]:
    """The suites by their names."""
    return {"reference": suite_path(), "easy-vqa": easy_vqa_path()}


def calibration_samples(count: int, seed: int = 0) -> list[Sample]:
    """`count` samples, one question a picture, the six tasks in turn; deterministic for a seed."""
    rng = Random(f"calibration {seed}")
    samples: list[Sample] = []
    while len(samples) < count:
        image, scene = draw(rng)
        question = ask(TASKS[len(samples) % len(TASKS)], scene, rng)
        if question is not None:
            samples.append(Sample(image, question.text, question.answer, question.task))
    return samples
