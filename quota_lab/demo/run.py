"""`quota demo`: the whole package on the bundled model, in one run.

Four variants answer the same questions of the reference suite:

    full        the reference model as shipped
    pruned      the same weights, visual tokens dropped by a recipe (no quantisation)
    quantized   W4A4KV4, every visual token kept
    quota       W4A4KV4 and the recipe, saved to disk and loaded back

`quantized` is the `quota` checkpoint with its Pruner taken off, so the two differ in nothing but the tokens.
Retention is measured against `full` on the same questions.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from PIL import Image

from quota.checkpoint.named import load_model
from quota.checkpoint.save import RECIPE_FILE, save_pretrained
from quota.compress import compress, prune_only
from quota.evaluation import Evaluation, Footprint, evaluate, footprint, retention, retention_interval
from quota.evaluation.footprint import disk_bytes
from quota.files import refuse_foreign
from quota.progress import Steps, silent
from quota.prompts import answer
from quota.pruning.pruner import Pruner
from quota.pruning.recipe import PruningRecipe
from quota.report.explain import Explanation, explain
from quota.report.sheet import Row, draw_sheet, save_picture
from quota.samples import Sample, first_of_each_task, read_samples
from quota_lab import reference
from quota_lab.reference import NAME as REFERENCE

QUESTIONS = 100
"""Questions of each task by default: what lets the whole demo end within 8 minutes on 2 cores."""
CALIBRATION_SAMPLES = 128
KEEP = 0.30
PICTURE = "kept_tokens.png"
PANEL = 216
"""Size of a drawn picture, in pixels."""


@dataclass(frozen=True)
class Variant:
    """One way to run the model, measured."""

    evaluation: Evaluation
    footprint: Footprint
    disk_bytes: int


@dataclass(frozen=True)
class Shown:
    """A question with the answers that are shown for it."""

    question: str
    expected: str
    full: str
    quota: str


@dataclass(frozen=True)
class Demo:
    """Everything the demo measured."""

    variants: dict[str, Variant]
    recipe: PruningRecipe
    shown: list[Shown]
    picture: Path
    checkpoint: Path
    backend: str
    seconds: float

    def retention(self, name: str) -> float | None:
        """Mean over tasks of the variant's accuracy / full precision's."""
        return retention(self._outcomes(name), self._outcomes("full"))

    def retention_interval(self, name: str) -> tuple[float, float] | None:
        """95% bootstrap interval of `retention`, both variants resampled question by question together."""
        return retention_interval(self._outcomes(name), self._outcomes("full"))

    def figures(self) -> dict[str, Any]:
        """What `quota demo --json` writes."""
        return {
            "variants": {name: self._variant_figures(name) for name in self.variants},
            "recipe": self.recipe.model_dump(mode="json"),
            "backend": self.backend,
            "seconds": self.seconds,
        }

    def _outcomes(self, name: str) -> dict[str, list[bool]]:
        return self.variants[name].evaluation.outcomes

    def _variant_figures(self, name: str) -> dict[str, Any]:
        variant = self.variants[name]
        return {
            "accuracy": variant.evaluation.accuracy,
            "average": variant.evaluation.average,
            "interval": variant.evaluation.interval,
            "retention": self.retention(name),
            "retention_interval": self.retention_interval(name),
            "questions": variant.evaluation.questions,
            "visual_tokens_per_layer": variant.footprint.visual_tokens_per_layer,
            "kv_bytes": variant.footprint.kv_bytes,
            "disk_bytes": variant.disk_bytes,
        }


def run_demo(out: Path, questions: int = QUESTIONS, progress: Steps = silent) -> Demo:
    """Run all of it; leaves `out/checkpoint` and `out/kept_tokens.png` behind.

    `questions` is how many of each task are asked: the first ones, so every run asks the same. Raises QuotaError if
    `out` cannot be written.
    """
    began = time.perf_counter()
    checkpoint = out / "checkpoint"
    refuse_foreign(checkpoint)
    samples = first_of_each_task(read_samples(reference.suite_path()), questions)
    calibration = reference.calibration_samples(CALIBRATION_SAMPLES, seed=0)
    shown = one_of_each_task(samples)
    tell = progress

    def measure(model: Any, processor: Any, step: str, size: int) -> Variant:
        answered = evaluate(model, processor, samples, progress=partial(tell, step))
        return Variant(answered, footprint(model, processor, samples[0]), size)

    full_model, processor, _ = load_model(REFERENCE)
    full_size = disk_bytes(reference.model_path())
    full = measure(full_model, processor, "full precision answers", full_size)
    full_answers = [answer(full_model, processor, sample) for sample in shown]

    model, processor, _ = load_model(REFERENCE)
    result = compress(model, processor, calibration, keep=KEEP, progress=partial(tell, "quantising and calibrating"))
    save_pretrained(model, processor, checkpoint)

    # From here on only what was saved counts.
    model, processor, _ = load_model(str(checkpoint))
    joint = measure(model, processor, "QUOTA answers", disk_bytes(checkpoint))
    explained = [explain(model, processor, sample, PANEL) for sample in shown]

    recipe_size = (checkpoint / RECIPE_FILE).stat().st_size
    cast(Pruner, model.quota_pruner).detach()
    quantized = measure(model, processor, "quantised only answers", disk_bytes(checkpoint) - recipe_size)

    prune_only(full_model, result.recipe)
    pruned = measure(full_model, processor, "pruned only answers", full_size + recipe_size)

    entries = [
        Shown(sample.question, sample.answer or "", plain, explanation.followed.answer)
        for sample, plain, explanation in zip(shown, full_answers, explained, strict=True)
    ]
    picture = out / PICTURE
    save_picture(_sheet(entries, explained), picture)
    variants = {"full": full, "quantized": quantized, "pruned": pruned, "quota": joint}
    seconds = time.perf_counter() - began
    return Demo(variants, result.recipe, entries, picture, checkpoint, str(joint.evaluation.operators), seconds)


def one_of_each_task(samples: Sequence[Sample]) -> list[Sample]:
    """The first question of every task that is about a picture of its own (any picture, where there is none left)."""
    chosen: dict[str | None, Sample] = {}
    for sample in samples:
        if sample.task not in chosen and sample.image not in [other.image for other in chosen.values()]:
            chosen[sample.task] = sample
    return [chosen.get(sample.task, sample) for sample in first_of_each_task(samples, 1)]


def _sheet(entries: Sequence[Shown], explained: Sequence[Explanation]) -> Image.Image:
    """A row a question: its answers, what the model saw, and what each candidate layer kept."""
    rows: list[Row] = []
    for entry, explanation in zip(entries, explained, strict=True):
        answers = f"QUOTA: {entry.quota}   |   full precision: {entry.full}   |   expected: {entry.expected}"
        rows += explanation.rows(entry.question, answers)
    return draw_sheet(rows)
