"""Train the reference VLM from nothing, on a CPU, in about an hour:

    python -m quota_lab.reference.train OUT

Four things make a model this small learn this fast:
- an auxiliary loss on the projector's output says what each patch shows, through the embeddings of the words that
  name it, so that a question's word and a visual token match from the start;
- a second one asks the nouns of a question, three layers into the decoder, what they found in the picture
  (`grounding.py`); the heads of both are dropped afterwards;
- some twenty questions a picture share one pass (`lessons.py`);
- Muon on the hidden matrices, AdamW on the rest, each of the two stages with a linear decay.

The run is seeded, writes a checkpoint every 500 steps and resumes from it exactly (see `state.py`).
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from quota_lab.reference.architecture import build_model
from quota_lab.reference.easy_vqa import EasyVQA
from quota_lab.reference.grounding import GROUND_FIELDS, MOST
from quota_lab.reference.labels import GRID, PATCH_WORDS
from quota_lab.reference.lessons import IGNORE, PREFIX, Batch, Lessons, to_float
from quota_lab.reference.state import load_state, save_state
from quota_lab.reference.tokenizer import build_processor, build_tokenizer
from quota_lab.reference.words import COLORS, EMOJI, LETTERS, SCENES, SHAPES

THINGS = len(EMOJI) + len(SHAPES)
GROUND_LAYER = 3  # decoder layers that a noun has to find what it names: candidates for pruning come right behind


@dataclass(frozen=True)
class Plan:
    """How long and how fast. The first `tower_steps` train the tower and projector alone, on patch labels."""

    steps: int = 6000
    tower_steps: int = 3500
    batch: int = 16
    muon: float = 0.02
    adamw: float = 2e-3
    warmup: int = 100
    decay: float = 0.5  # the share of either stage over which its learning rate falls
    seen: float = 0.3  # where the tower's learning rate stands once it can see: its first stage falls to this
    seed: int = 0

    def scale(self, step: int) -> tuple[float, float]:
        """Learning rates of what sees and of what reads, relative to their peaks."""
        if step < self.tower_steps:
            left = (self.tower_steps - step) / (self.decay * self.tower_steps)
            scale = min(1.0, (step + 1) / self.warmup, max(left, self.seen))
            return scale, scale
        left = (self.steps - step) / (self.decay * (self.steps - self.tower_steps))
        scale = min(1.0, (step - self.tower_steps + 1) / self.warmup, left)
        return self.seen * scale, scale


class Heads(nn.Module):
    """The auxiliary losses: what patches show and what nouns refer to.

    Patch words and colours go through the word embeddings themselves, everything else through heads of its own.
    """

    def __init__(self, width: int, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.place = nn.Linear(width, 2 * GRID + 2)
        self.ground = nn.Linear(width, MOST + 1 + 2 * GRID + len(COLORS))
        self.words = self._ids(tokenizer, PATCH_WORDS)
        self.colors = self._ids(tokenizer, tuple(COLORS))

    @staticmethod
    def _ids(tokenizer: PreTrainedTokenizerFast, words: tuple[str, ...]) -> Tensor:
        # A letter is a token without a space before it, a word one with.
        texts = [word if len(word) == 1 else f" {word}" for word in words]
        return torch.tensor([tokenizer.encode(text, add_special_tokens=False)[-1] for text in texts])

    def patches(self, visual: Tensor, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """visual [B, 144, D], labels [B, 5, 144] -> one mean loss a field."""
        word, color, row, column, center = labels.unbind(1)
        rows, columns, centers = self.place(visual).split((GRID, GRID, 2), -1)
        embeddings = embeddings * embeddings.shape[1] ** -0.5
        return {
            **self._words(visual @ embeddings[self.words].T, word),
            "color": _loss(visual @ embeddings[self.colors].T, color),
            "row": _loss(rows, row),
            "column": _loss(columns, column),
            "center": _loss(centers, torch.where(word >= 0, center, -1)),
        }

    @staticmethod
    def _words(logits: Tensor, word: Tensor) -> dict[str, Tensor]:
        """One mean each for things, places and letters: letters are few, and drown among the rest."""
        kinds = {"thing": (0, THINGS), "place": (THINGS, THINGS + len(SCENES)), "letter": (-len(LETTERS), None)}
        indices = torch.arange(len(PATCH_WORDS))
        ofkind = {name: torch.isin(word, indices[start:end]) for name, (start, end) in kinds.items()}
        return {name: _loss(logits, torch.where(chosen, word, -1)) for name, chosen in ofkind.items()}

    def nouns(self, hidden: Tensor, grounds: Tensor) -> dict[str, Tensor]:
        """hidden [B, L, D] of decoder layer GROUND_LAYER, grounds [B, 4, L] -> one mean loss a field."""
        named = (grounds >= 0).any(1)
        found = self.ground(F.rms_norm(hidden[named], hidden.shape[-1:]))
        parts = found.split((MOST + 1, GRID, GRID, len(COLORS)), -1)
        labels = grounds.transpose(1, 2)[named].unbind(-1)
        return {
            f"noun_{field}": _loss(logits, label)
            for field, logits, label in zip(GROUND_FIELDS, parts, labels, strict=True)
        }


WEIGHTS = {
    "thing": 0.5, "place": 0.1, "letter": 1.0, "color": 0.25, "row": 0.2, "column": 0.2, "center": 0.25,
    "noun_count": 0.5, "noun_row": 0.2, "noun_column": 0.2, "noun_color": 0.2, "answer": 1.0,
}  # fmt: skip


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    chosen = labels >= 0
    return F.cross_entropy(logits[chosen].float(), labels[chosen]) if chosen.any() else logits.sum() * 0


def see(model: Any, pixels: Tensor) -> Tensor:
    """Visual tokens [B, 144, D] of pictures [B, 3, 144, 144], by the model's own path."""
    features = model.model.get_image_features(pixel_values=pixels).pooler_output
    return torch.stack(list(features))


def read(model: Any, visual: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of the answers' tokens, and the hidden states [B, L, D] behind GROUND_LAYER layers."""
    text = model.get_input_embeddings()(batch.ids)
    inputs = torch.cat((text[:, :1], visual.to(text.dtype), text[:, PREFIX:]), 1)
    output = model.model.language_model(
        inputs_embeds=inputs,
        attention_mask=batch.mask(),
        position_ids=batch.positions,
        use_cache=False,
        output_hidden_states=True,
    )
    chosen = batch.targets != IGNORE
    # Only answers pass through the output layer.
    logits = model.lm_head(output.last_hidden_state[chosen])
    return F.cross_entropy(logits.float(), batch.targets[chosen]), output.hidden_states[GROUND_LAYER]


def optimizers(model: nn.Module, heads: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    """One group each: matrices that see, matrices that read, the patch embedding, everything else.

    The patch embedding learns at a twentieth of AdamW's rate: any faster, and its noise hides letters.
    """
    sees, reads, patches, rest = [], [], [], list(heads.parameters())
    for name, parameter in model.named_parameters():
        if "patch_embedding" in name:
            patches.append(parameter)
        elif parameter.ndim == 2 and "embed" not in name and "lm_head" not in name:
            (reads if "language_model" in name else sees).append(parameter)
        else:
            rest.append(parameter)
    return [
        *(torch.optim.Muon(part, lr=plan.muon, weight_decay=0.2, momentum=0.95) for part in (sees, reads)),
        *(torch.optim.AdamW(part, weight_decay=0.0, betas=(0.9, 0.98)) for part in (patches, rest)),
    ]


def train(out: Path, plan: Plan) -> None:
    """Train and write the finished model to `out`; `out`.state holds the checkpoint of an unfinished run."""
    torch.manual_seed(plan.seed)
    tokenizer = build_tokenizer(plan.seed)
    model, heads = build_model(), Heads(256, tokenizer)
    groups = optimizers(model, heads, plan)
    parts = nn.ModuleDict({"model": model, "heads": heads})
    state = out.with_name(out.name + ".state")
    start = load_state(state, parts, groups)
    model.model.vision_tower.compile()
    model.model.language_model.compile()
    lessons = Lessons(tokenizer, plan.batch, plan.seed, EasyVQA("train"))
    batches = DataLoader(lessons, batch_size=None, sampler=range(start, plan.steps), num_workers=1, prefetch_factor=4)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    log = out.with_name(out.name + ".log.jsonl").open("a")
    began = time.monotonic()
    with Progress(*columns) as bar, log:
        shown = bar.add_task("training", total=plan.steps, completed=start)
        for step, batch in enumerate(batches, start):
            losses = _step(step, plan, model, heads, groups, batch)
            bar.update(shown, completed=step + 1)
            if step % 50 == 0:
                line = {"step": step, "seconds": round(time.monotonic() - began, 1), **losses}
                log.write(json.dumps(line) + "\n")
                log.flush()
                bar.update(shown, description=" ".join(f"{name} {value:.3f}" for name, value in losses.items()))
            if (step + 1) % 500 == 0:
                save_state(state, parts, groups, step + 1)
    model.eval().bfloat16().save_pretrained(out)
    build_processor(tokenizer).save_pretrained(out)


def _step(
    step: int, plan: Plan, model: Any, heads: Heads,
    groups: list[torch.optim.Optimizer], batch: Batch,
) -> dict[str, float]:  # fmt: skip
    sees, reads = plan.scale(step)
    rates = (plan.muon * sees, plan.muon * reads, plan.adamw * sees / 20, plan.adamw * reads)
    for group, rate in zip(groups, rates, strict=True):
        group.param_groups[0]["lr"] = rate
    with torch.autocast("cpu", torch.bfloat16):
        visual = see(model, to_float(batch.pixels))
        losses = heads.patches(visual, model.get_input_embeddings().weight, batch.labels)
        if step >= plan.tower_steps:
            answer, hidden = read(model, visual, batch)
            losses |= heads.nouns(hidden, batch.grounds) | {"answer": answer}
    torch.stack([WEIGHTS[name] * loss for name, loss in losses.items()]).sum().backward()
    for group in groups:
        parameters = [p for p in group.param_groups[0]["params"] if p.grad is not None]
        if not parameters:
            continue  # the decoder, while the tower is trained alone
        nn.utils.clip_grad_norm_(parameters, 1.0)
        group.step()
        group.zero_grad(set_to_none=True)
    return {name: round(float(loss.detach()), 4) for name, loss in losses.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the reference VLM (resumes an unfinished run).")
    parser.add_argument("out", type=Path)
    for name, kind in (("steps", int), ("tower_steps", int), ("batch", int), ("seed", int)):
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=getattr(Plan, name))
    arguments = vars(parser.parse_args())
    train(arguments.pop("out"), Plan(**arguments))


if __name__ == "__main__":
    main()
