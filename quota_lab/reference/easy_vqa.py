"""easy-vqa (PyPI, MIT, Victor Zhou): questions about single shapes that nobody here wrote.

Its training half is a small part of what the reference model learns from; its test half is the seventh task of the
reference suite. The package itself is needed only to train and to write the suite (extra `train`).
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from random import Random

from PIL import Image

from quota.errors import QuotaError
from quota_lab.reference.pictures import PICTURE
from quota_lab.reference.questions import Question

TASK = "easy-vqa"


class EasyVQA:
    """One half ("train" or "test") of easy-vqa: pictures by number, each with its questions."""

    def __init__(self, half: str) -> None:
        spec = find_spec("easy_vqa")
        if spec is None or spec.origin is None:
            raise QuotaError("easy-vqa is not installed: pip install 'quota-vlm[train]'")
        self.folder = Path(spec.origin).parent / "data" / half
        self.questions: dict[int, list[Question]] = {}
        for text, answer, picture in json.loads((self.folder / "questions.json").read_text()):
            self.questions.setdefault(picture, []).append(Question(TASK, text, answer))
        self.pictures = sorted(self.questions)

    def original(self, number: int) -> Image.Image:
        """Picture `number`, 64 x 64 pixels."""
        with Image.open(self.folder / "images" / f"{number}.png") as image:
            return image.convert("RGB")

    def lesson(self, rng: Random) -> tuple[Image.Image, list[Question]]:
        """A picture enlarged to the model's 144 x 144 pixels, as the processor does, and all its questions."""
        number = rng.choice(self.pictures)
        questions = list(self.questions[number])
        rng.shuffle(questions)
        return self.original(number).resize((PICTURE, PICTURE), Image.Resampling.BICUBIC), questions
