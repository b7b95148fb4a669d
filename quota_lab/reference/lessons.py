"""What the reference model is trained on: batches of pictures, each with as many questions as fit.

All turns of a picture share its 144 visual tokens, and most batches let a turn see the picture and itself only, as
if it had been asked alone: one pass over a picture then answers some twenty questions. One batch in five lets turns
see those before, so that conversations work too.

Batch `i` depends on the seed and on `i` alone, so an interrupted run resumes exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from quota_lab.reference.easy_vqa import EasyVQA
from quota_lab.reference.grounding import GROUND_FIELDS, Grounding
from quota_lab.reference.labels import FIELDS, GRID, patch_labels
from quota_lab.reference.pictures import draw
from quota_lab.reference.questions import TASKS, Question, ask, describe
from quota_lab.reference.tokenizer import ASSISTANT, BOS, EOS, IMAGE, PAD, USER

PREFIX = 1 + GRID * GRID  # <s> and the visual tokens
TEXT = 256  # text tokens a picture
SIGNS = 0.9  # share of pictures with a sign: letters are learnt last
UNLISTED_WORDS = 0.3  # share of signs with random letters, so that reading is not guessing
EASY_VQA = 0.08  # share of pictures from the training half of easy-vqa
IGNORE = -100


@dataclass
class Batch:
    """pixels [B, 144, 144, 3] uint8; labels [B, 5, 144]; grounds [B, 4, L]; the rest [B, L], L = PREFIX + TEXT."""

    pixels: Tensor
    labels: Tensor
    grounds: Tensor
    ids: Tensor
    targets: Tensor
    positions: Tensor
    turns: Tensor

    def mask(self) -> Tensor:
        """Attention mask [B, 1, L, L], True where a query may look: back, at the picture or at its own turn."""
        length = self.ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        same = self.turns[:, :, None] == self.turns[:, None, :]
        picture = torch.arange(length) < PREFIX
        return (causal & (same | picture))[:, None]


class Lessons(Dataset):
    """Batch number -> `Batch`."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, batch: int, seed: int, easy_vqa: EasyVQA | None) -> None:
        self.tokenizer, self.batch, self.seed, self.easy_vqa = tokenizer, batch, seed, easy_vqa
        self.grounding = Grounding(tokenizer)

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, index: int) -> Batch:
        rng = Random(f"lessons {self.seed} {index}")
        conversation = rng.random() < 0.2
        rows = [self._row(rng, conversation) for _ in range(self.batch)]
        pixels, labels, grounds, text = (torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
        return Batch(pixels, labels.long(), grounds.long(), *text.unbind(1))

    def _row(self, rng: Random, conversation: bool) -> tuple[np.ndarray, ...]:
        if self.easy_vqa is not None and rng.random() < EASY_VQA:
            image, questions = self.easy_vqa.lesson(rng)
            labels = np.full((len(FIELDS), GRID * GRID), -1, np.int16)
            text = self._text(questions, conversation)
            grounds = np.full((len(GROUND_FIELDS), text.shape[1]), -1, np.int16)
        else:
            image, scene = draw(rng, UNLISTED_WORDS, SIGNS)
            labels = patch_labels(scene)
            asked = [ask(task, scene, rng) for task in TASKS for _ in range(6)]
            if rng.random() < 0.3:
                asked.append(describe(scene))
            questions = list(dict.fromkeys(filter(None, asked)))
            rng.shuffle(questions)
            text = self._text(questions, conversation)
            grounds = self.grounding(text, scene)
        return np.asarray(image), labels, grounds, text

    def _text(self, questions: list[Question], conversation: bool) -> np.ndarray:
        """ids, targets, positions, turns [4, PREFIX + TEXT]; only answers are targets."""
        rows = np.zeros((4, PREFIX + TEXT), np.int64)
        ids, targets, positions, turns = rows
        ids[:], targets[:], turns[:] = PAD, IGNORE, -2
        ids[0], ids[1:PREFIX], positions[:PREFIX], turns[:PREFIX] = BOS, IMAGE, range(PREFIX), -1
        asked = self.tokenizer([f" {question.text}" for question in questions], add_special_tokens=False)["input_ids"]
        told = self.tokenizer([f" {question.answer}" for question in questions], add_special_tokens=False)["input_ids"]
        at, position = PREFIX, PREFIX
        for turn, (question, answer) in enumerate(zip(asked, told, strict=True)):
            tokens = [USER, *question, ASSISTANT, *answer, EOS]
            end = at + len(tokens)
            if end > len(ids):
                break
            ids[at:end] = tokens
            targets[end - len(answer) - 2 : end - 1] = tokens[-len(answer) - 1 :]
            positions[at:end] = np.arange(position, position + len(tokens))
            turns[at:end] = 0 if conversation else turn
            at, position = end, end if conversation else PREFIX
        return rows


def to_float(pixels: Tensor) -> Tensor:
    """[B, H, W, 3] uint8 -> [B, 3, H, W], as the processor normalises (mean 0.5, standard deviation 0.25)."""
    return (pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
