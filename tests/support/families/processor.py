"""Questions for a tiny family, and what stands for its processor, which for some families needs torchvision."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from PIL import Image
from transformers import BatchFeature

from quota.samples import Sample
from support.families.family import IMAGE, PAD, TinyFamily

SAMPLES = [Sample(Image.new("RGB", (8, 8)), f"question {number}") for number in range(2)]
"""One about a picture of each size."""


class HandWritten:
    """Every numbered question is a prompt of `tiny`, always the same."""

    chat_template = "as the family has it"

    def __init__(self, tiny: TinyFamily) -> None:
        self.tiny = tiny
        self.tokenizer = SimpleNamespace(pad_token_id=PAD, get_vocab=dict)

    def apply_chat_template(self, turns: list[dict], **options: object) -> str:
        return turns[0]["content"][-1]["text"]

    def __call__(self, text: list[str], **options: object) -> BatchFeature:
        # The typical prompt of a budget asks something else, about the picture of fewer tokens.
        words = [question.split()[-1] for question in text]
        numbers = [int(word) if word.isdigit() else min((0, 1), key=self._tokens) for word in words]
        return self._batch(numbers)

    def _batch(self, numbers: list[int]) -> BatchFeature:
        prompts = [self.tiny.prompt([self.tiny.sizes[number % 2]], 5, seed=number) for number in numbers]
        return BatchFeature(self.tiny.batch(prompts))

    def _tokens(self, number: int) -> int:
        return int((self._batch([number])["input_ids"] == IMAGE).sum())

    def from_pretrained(self, folder: Path) -> HandWritten:
        """In the place of `AutoProcessor`."""
        return self

    def save_pretrained(self, folder: Path) -> None:
        pass
