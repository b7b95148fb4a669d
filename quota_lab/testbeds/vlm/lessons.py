"""What the testbed is trained on: batches of pictures, each with as many questions as fit.

All turns of a picture share its 256 visual tokens and see these and themselves only, as if each had been asked alone.
Batch `i` depends on the seed and on `i` alone, so an interrupted run resumes exactly.

A noun of a question ("the lemon") is asked, part of the way into the decoder, what it found in the picture:

    present     1 if there is such a thing, else 0
    vertical    its row, if there is one only; else -1
    horizontal  its column, likewise
    color       of its frame, likewise
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from quota_lab.testbeds.vlm.architecture import DEVIATION, END, IMAGE, MEAN, START
from quota_lab.testbeds.vlm.labels import GRID, patch_labels
from quota_lab.testbeds.vlm.photos import Photos
from quota_lab.testbeds.vlm.pictures import Scene, draw
from quota_lab.testbeds.vlm.questions import TASKS, Question, ask, unique
from quota_lab.testbeds.vlm.words import COLORS, KINDS

VISUAL = GRID * GRID
TEXT = 320  # text tokens a picture
IGNORE = -100
GROUNDS = ("present", "vertical", "horizontal", "color")
_COLOR = {name: index for index, name in enumerate(COLORS)}


@dataclass(frozen=True)
class Batch:
    """pixels [B, 224, 224, 3] uint8; labels [B, 8, 256]; grounds [B, 4, L]; the rest [B, L].

    `tasks` is the number of the task of the turn a token belongs to, -1 before the first.
    """

    pixels: Tensor
    labels: Tensor
    grounds: Tensor
    ids: Tensor
    targets: Tensor
    positions: Tensor
    turns: Tensor
    tasks: Tensor

    def mask(self) -> Tensor:
        """Attention mask [B, 1, L, L], True where a query may look: back, at the picture or at its own turn."""
        length = self.ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.ids.device).tril()
        same = self.turns[:, :, None] == self.turns[:, None, :]
        return (causal & (same | (self.turns == -1)[:, None, :]))[:, None]

    def to(self, device: torch.device) -> Batch:
        return Batch(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


@dataclass(frozen=True)
class Curriculum:
    """How often each task is asked of a picture, in the order of TASKS, the most photographs in it, and pictures."""

    turns: tuple[int, ...] = (4, 4, 4, 3, 4, 3)
    most: int = 6
    batch: int = 8


class Lessons(Dataset[Batch]):
    """Batch number -> `Batch`."""

    def __init__(
        self,
        tokenizer: Any,
        photos: Photos,
        seed: int,
        curriculum: Callable[[int], Curriculum] = lambda _: Curriculum(),
    ) -> None:
        self.tokenizer, self.photos, self.seed, self.curriculum = tokenizer, photos, seed, curriculum

    @cached_property
    def front(self) -> list[int]:
        """Ids before the first question: the user's turn begins, and the picture."""
        return self._encode([f"{START}user\n{IMAGE}"])[0][:-1] + [self.image] * VISUAL

    @cached_property
    def image(self) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(IMAGE))

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def __getitem__(self, index: int) -> Batch:
        rng = Random(f"lessons {self.seed} {index}")
        plan = self.curriculum(index)
        rows = [self._row(rng, plan) for _ in range(plan.batch)]
        pixels, labels, grounds, text = (torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
        return Batch(pixels, labels.long(), grounds.long(), *text.unbind(1))

    def _row(self, rng: Random, plan: Curriculum) -> tuple[np.ndarray, ...]:
        image, scene = draw(self.photos, rng, most=plan.most)
        asked = [ask(task, scene, rng) for task, count in zip(TASKS, plan.turns, strict=True) for _ in range(count)]
        questions = list(dict.fromkeys(filter(None, asked)))
        rng.shuffle(questions)
        text, grounds = self.pack(questions, scene)
        return np.asarray(image), patch_labels(scene), grounds, text

    def pack(self, questions: list[Question], scene: Scene) -> tuple[np.ndarray, np.ndarray]:
        """ids, targets, positions, turns, tasks [5, L] and grounds [4, L]; only answers are targets."""
        before = len(self.front)
        rows = np.zeros((5, before + TEXT), np.int64)
        grounds = np.full((len(GROUNDS), before + TEXT), -1, np.int16)
        ids, targets, positions, turns, tasks = rows
        ids[:], targets[:], turns[:], tasks[:] = self.tokenizer.pad_token_id, IGNORE, -2, -1
        ids[:before], positions[:before], turns[:before] = self.front, range(before), -1
        asked = self.tokenizer(
            [question.text for question in questions], add_special_tokens=False, return_offsets_mapping=True
        )
        middle, end = self._encode([f"{END}\n{START}assistant\n", END])
        told = self._encode([f" {question.answer}" for question in questions])
        at = before
        for turn, (question, answer) in enumerate(zip(questions, told, strict=True)):
            words = asked["input_ids"][turn]
            tokens = [*words, *middle, *answer, *end]
            stop = at + len(tokens)
            if stop > len(ids):
                break
            ids[at:stop] = tokens
            targets[stop - len(answer) - 2 : stop - 1] = tokens[-len(answer) - 1 :]
            positions[at:stop] = np.arange(before, before + len(tokens))
            turns[at:stop], tasks[at:stop] = turn, TASKS.index(question.task)
            self._ground(grounds[:, at : at + len(words)], question.text, asked["offset_mapping"][turn], scene)
            at = stop
        return rows, grounds

    @staticmethod
    def _ground(grounds: np.ndarray, text: str, offsets: list[tuple[int, int]], scene: Scene) -> None:
        alone = {thing.kind: thing for thing in unique(scene)}
        shown = {thing.kind for thing in scene.things}
        for index, (start, end) in enumerate(offsets):
            word = text[start:end].strip()
            if word not in KINDS:
                continue
            grounds[0, index] = word in shown
            if word in alone:
                thing = alone[word]
                grounds[1:, index] = thing.row, thing.column, _COLOR[thing.color]


def to_float(pixels: Tensor) -> Tensor:
    """[B, H, W, 3] uint8 -> [B, 3, H, W], as the processor normalises."""
    mean, deviation = (torch.tensor(each, device=pixels.device) for each in (MEAN, DEVIATION))
    return ((pixels.float() / 255 - mean) / deviation).permute(0, 3, 1, 2)
