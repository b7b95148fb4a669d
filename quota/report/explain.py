"""Explain one answer: which visual tokens each candidate layer of a pruned model sent on, and where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from quota import ops
from quota.errors import QuotaError
from quota.models import Box, Boxes, family
from quota.prompts import build_inputs, decode, generate
from quota.pruning.pruner import is_pruned, record
from quota.pruning.recipe import PruningRecipe
from quota.pruning.trace import Trace
from quota.report.overlay import overlay
from quota.report.plot import schedule_plot
from quota.report.sheet import Row, draw_sheet, save_picture, stack
from quota.samples import Sample


@dataclass(frozen=True)
class Followed:
    """One question's answer, and the way of its visual tokens through the decoder."""

    answer: str
    kept: dict[int, list[int]]
    """Candidate layer -> indices of the visual tokens that go on from it, in the order of the prompt."""
    boxes: Boxes
    """Where each visual token stands; None for those without a place."""
    visual_tokens_per_layer: list[int]
    """Visual tokens that enter each decoder layer."""
    pictures: list[Image.Image]
    """Those of the question, or all frames of its video."""
    operators: ops.Usage
    """The backends that ran."""
    video: bool

    def standing(self) -> dict[str, tuple[Image.Image, dict[int, Box]]]:
        """Name of each picture or frame that holds tokens -> it, and its tokens' boxes by their index."""
        return standing(self.pictures, self.boxes, self.video)


@dataclass(frozen=True)
class Explanation:
    """One question's answer and its kept tokens, drawn."""

    followed: Followed
    recipe: PruningRecipe
    panels: dict[str, list[tuple[str, Image.Image]]]
    """Name of each picture or frame -> captioned pictures: all tokens, then those that every candidate layer kept."""

    def figures(self) -> dict[str, Any]:
        """What `quota explain --json` writes."""
        found = self.followed
        return {
            "answer": found.answer,
            "kept": {str(layer): indices for layer, indices in found.kept.items()},
            "boxes": [None if box is None else asdict(box) for box in found.boxes],
            "visual_tokens_per_layer": found.visual_tokens_per_layer,
            "backends": found.operators.backends(),
        }

    def rows(self, heading: str, note: str) -> list[Row]:
        """A row of panels for each picture or frame; `heading` and `note` stand above the first."""
        first, *others = self.panels.items()
        named = [first[0]] if others else []
        return [Row(heading, [note, *named], first[1]), *(Row("", [name], panels) for name, panels in others)]


def follow(model: Any, processor: Any, sample: Sample) -> Followed:
    """Answer one question while recording; a model that does not prune keeps every token in every layer.

    Raises QuotaError for a model whose tokens cannot be placed (`Family.boxes`).
    """
    inputs = build_inputs(processor, [sample])
    pictures = sample.pictures()
    boxes = family(model).boxes(processor, inputs, pictures)
    with record(model) if is_pruned(model) else nullcontext() as trace, ops.record() as operators:
        text = decode(processor, generate(model, processor, inputs))[0]
    if trace is None:
        tokens, kept = [len(boxes)] * len(family(model).decoder_layers), {}
    else:
        tokens = list(trace.tokens_per_layer)
        kept = kept_by(trace)
    return Followed(text, kept, boxes, tokens, pictures, operators, sample.video)


def explain(model: Any, processor: Any, sample: Sample, size: int = 288) -> Explanation:
    """Answer one question while recording, and draw what was kept (panels of about `size` pixels).

    Raises QuotaError for a model that does not prune, and for one whose tokens cannot be placed (`Family.boxes`).
    """
    if not is_pruned(model):
        raise QuotaError("this model is not pruned: it keeps every token, and there is nothing to explain")
    found = follow(model, processor, sample)
    panels = draw_panels(found.pictures, found.boxes, found.kept, size, found.video)
    return Explanation(found, model.quota_pruner.recipe, panels)


def kept_by(trace: Trace) -> dict[int, list[int]]:
    """Candidate layer -> indices of the visual tokens that went on, of the one question that was recorded."""
    return {layer: [index for index in rows[0].tolist() if index >= 0] for layer, rows in trace.kept.items()}


def standing(
    pictures: Sequence[Image.Image], boxes: Boxes, video: bool = False
) -> dict[str, tuple[Image.Image, dict[int, Box]]]:
    """Name of each of `pictures`, or frames of a `video`, that holds tokens -> it, and its tokens' boxes by index."""
    found = {}
    for number in sorted({box.picture for box in boxes if box is not None}):
        own = {index: box for index, box in enumerate(boxes) if box is not None and box.picture == number}
        found[_name(next(iter(own.values())), video)] = pictures[number], own
    return found


def draw_panels(
    pictures: Sequence[Image.Image], boxes: Boxes, kept: dict[int, list[int]], size: int, video: bool = False
) -> dict[str, list[tuple[str, Image.Image]]]:
    """The panels of an `Explanation`, their longer side `size` pixels."""
    places = standing(pictures, boxes, video)
    return {name: _panels(picture, own, kept, size) for name, (picture, own) in places.items()}


def draw_explanation(question: str, explanation: Explanation, path: Path) -> None:
    """Write a PNG: the panels of an explanation, and the schedule they follow. Raises QuotaError without matplotlib."""
    sheet = draw_sheet(explanation.rows(question, f"answer: {explanation.followed.answer}"))
    plot = schedule_plot(explanation.recipe, explanation.followed.visual_tokens_per_layer, max(sheet.width, 900))
    save_picture(stack([sheet, plot]), path)


def _panels(
    picture: Image.Image, boxes: dict[int, Box], kept: dict[int, list[int]], size: int
) -> list[tuple[str, Image.Image]]:
    """Panels of one picture, whose tokens are `boxes` by their index."""

    def panel(caption: str, indices: Sequence[int]) -> tuple[str, Image.Image]:
        return caption, overlay(picture, list(boxes.values()), [boxes[index] for index in indices], size)

    panels = [panel(f"what the model sees: {len(boxes)} tokens", list(boxes))]
    for layer, indices in sorted(kept.items()):
        own = [index for index in indices if index in boxes]
        place = "before layer 0" if layer < 0 else f"after layer {layer}"
        panels.append(panel(f"{place}: {len(own)} kept", own))
    return panels


def _name(box: Box, video: bool) -> str:
    """What a picture is called, counted from 1 as people do."""
    if not video:
        return f"picture {box.picture + 1}"
    last = box.picture + box.span
    return f"frame {last}" if box.span == 1 else f"frames {box.picture + 1} to {last}"
