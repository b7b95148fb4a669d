"""The losses: the answers, and two auxiliary ones whose heads are dropped after training.

Patches: what a visual token shows goes through the decoder's own word embeddings, so that it lies where the decoder
can match it with a word of the question. With unit embeddings e_c of the classes, the logits of a visual token v are
SHARPNESS v e_c. Its own row and column go through a linear head.

Nouns: behind GROUND_LAYER layers of the decoder, a linear head reads from a noun of the question what it found.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from quota_lab.testbeds.vlm.labels import FIELDS, GRID, THINGS
from quota_lab.testbeds.vlm.lessons import GROUNDS, IGNORE
from quota_lab.testbeds.vlm.questions import TASKS
from quota_lab.testbeds.vlm.words import BACKGROUND, COLORS, HORIZONTAL, LETTERS, SIGNS, VERTICAL

GROUND_LAYER = 12
SHARPNESS = 3.0
CLASSES = {
    "thing": THINGS, "color": tuple(COLORS), "letter": LETTERS, "word": SIGNS,
    "vertical": VERTICAL, "horizontal": HORIZONTAL,
}  # fmt: skip
WEIGHTS = {
    "thing": 0.5, "color": 0.25, "letter": 0.25, "word": 0.25, "vertical": 0.2, "horizontal": 0.2, "row": 0.1,
    "column": 0.1, "noun_present": 0.3, "noun_vertical": 0.2, "noun_horizontal": 0.2, "noun_color": 0.2, "answer": 1.0,
}  # fmt: skip


class Heads(nn.Module):
    """The auxiliary losses; only `place` and `ground` have weights of their own."""

    def __init__(self, embeddings: Tensor, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        width = embeddings.shape[1]
        self.place = nn.Linear(width, 2 * GRID)
        self.ground = nn.Linear(width, 2 + len(VERTICAL) + len(HORIZONTAL) + len(COLORS))
        for field, names in CLASSES.items():
            ids = [tokenizer.encode(f" {name}", add_special_tokens=False)[-1] for name in names]
            self.register_buffer(field, F.normalize(embeddings[ids].detach().float(), dim=-1), persistent=False)

    def patches(self, visual: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """visual [B, 256, D], labels [B, 8, 256] -> a mean loss a field, and the share that is right.

        Background is everywhere: it has a tenth of the weight of a thing.
        """
        logits = {field: SHARPNESS * visual @ getattr(self, field).to(visual.dtype).T for field in CLASSES}
        logits["row"], logits["column"] = self.place(visual).split(GRID, -1)
        target = dict(zip(FIELDS, labels.unbind(1), strict=True))
        weight = torch.ones(len(THINGS), device=visual.device)
        weight[THINGS.index(BACKGROUND)] = 0.1
        losses = {field: loss(logits[field], target[field], weight if field == "thing" else None) for field in FIELDS}
        shown = target["color"] >= 0
        right = {field: accuracy(logits[field], torch.where(shown, target[field], -1)) for field in FIELDS}
        return losses, right

    def nouns(self, hidden: Tensor, grounds: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """hidden [B, L, D] behind GROUND_LAYER, grounds [B, 4, L] -> a mean loss a field, and the share right."""
        named = grounds[:, 0] >= 0
        found = self.ground(F.rms_norm(hidden[named].float(), hidden.shape[-1:]))
        parts = found.split((2, len(VERTICAL), len(HORIZONTAL), len(COLORS)), -1)
        targets = grounds.transpose(1, 2)[named].unbind(-1)
        pairs = {f"noun_{field}": pair for field, *pair in zip(GROUNDS, parts, targets, strict=True)}
        return (
            {name: loss(*pair) for name, pair in pairs.items()},
            {name: accuracy(*pair) for name, pair in pairs.items()},
        )


def loss(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of the labels that are not negative; 0 where there are none."""
    chosen = labels >= 0
    return F.cross_entropy(logits[chosen].float(), labels[chosen], weight) if chosen.any() else logits.sum() * 0


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of the labels that are not negative and that have the largest logit; nan where there are none."""
    chosen = labels >= 0
    return (logits[chosen].argmax(-1) == labels[chosen]).float().mean()


def answers(logits: Tensor, targets: Tensor, turns: Tensor, tasks: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of the answers' tokens, and for every task the share of answers all of whose tokens have the largest logit.

    logits [N, V] of the tokens [N] that are targets; targets, turns, tasks [B, L].
    """
    chosen = targets != IGNORE
    wrong = torch.zeros_like(targets)
    wrong[chosen] = (logits.argmax(-1) != targets[chosen]).long()
    told = tasks[chosen].new_zeros(len(targets), int(turns.max()) + 1)
    rows = torch.arange(len(targets), device=targets.device)[:, None].expand_as(turns)
    missed = torch.zeros_like(told).index_put_((rows[chosen], turns[chosen]), wrong[chosen], accumulate=True)
    kind = torch.full_like(told, -1).index_put_((rows[chosen], turns[chosen]), tasks[chosen])
    right = {task: (missed[kind == index] == 0).float().mean() for index, task in enumerate(TASKS)}
    return F.cross_entropy(logits.float(), targets[chosen]), right
