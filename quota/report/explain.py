"""Explain one answer: which visual tokens each candidate layer of a pruned model sent on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from quota import ops
from quota.prompts import build_inputs, decode, generate
from quota.pruning.pruner import record
from quota.pruning.recipe import PruningRecipe
from quota.report.overlay import overlay, seen_picture, token_grid
from quota.report.plot import schedule_plot
from quota.report.sheet import Row, draw_sheet, save_picture, stack
from quota.samples import Sample


@dataclass(frozen=True)
class Explanation:
    """One question's answer and its kept tokens."""

    answer: str
    recipe: PruningRecipe
    kept: dict[int, list[int]]
    """Candidate layer -> indices of the visual tokens that go on from it, in reading order."""
    visual_tokens_per_layer: list[int]
    """Visual tokens that enter each decoder layer."""
    panels: list[tuple[str, Image.Image]]
    """Captioned pictures: what the model saw, then the kept tokens of every candidate layer."""
    operators: ops.Usage
    """The backends that ran."""

    def figures(self) -> dict[str, Any]:
        """What `quota explain --json` writes."""
        return {
            "answer": self.answer,
            "kept": {str(layer): indices for layer, indices in self.kept.items()},
            "visual_tokens_per_layer": self.visual_tokens_per_layer,
            "backends": self.operators.backends(),
        }


def explain(model: Any, processor: Any, sample: Sample, size: int = 288) -> Explanation:
    """Answer one question while recording, and draw what was kept (panels of about `size` pixels).

    Raises QuotaError for a model that does not prune, or whose visual tokens are not a grid over the picture.
    """
    inputs = build_inputs(processor, [sample])
    pixels = inputs["pixel_values"][0]
    with record(model) as trace, ops.record() as operators:
        text = decode(processor, generate(model, processor, inputs))[0]
    tokens = list(trace.tokens_per_layer)
    kept = {layer: [index for index in rows[0].tolist() if index >= 0] for layer, rows in trace.kept.items()}
    total = next(iter(trace.scores.values())).shape[1]
    grid = token_grid(model, pixels, total)
    seen = seen_picture(processor, pixels)
    panels = [(f"what the model sees: {total} tokens", overlay(seen, grid, range(total), size))]
    for layer, indices in sorted(kept.items()):
        place = "before layer 0" if layer < 0 else f"after layer {layer}"
        panels.append((f"{place}: {len(indices)} kept", overlay(seen, grid, indices, size)))
    return Explanation(text, model.quota_pruner.recipe, kept, tokens, panels, operators)


def draw_explanation(question: str, explanation: Explanation, path: Path) -> None:
    """Write a PNG: the panels of an explanation, and the schedule they follow. Raises QuotaError without matplotlib."""
    sheet = draw_sheet([Row(question, [f"answer: {explanation.answer}"], explanation.panels)])
    plot = schedule_plot(explanation.recipe, explanation.visual_tokens_per_layer, max(sheet.width, 900))
    save_picture(stack([sheet, plot]), path)
