"""Make a variant, ask it the questions, remember the outcome.

An outcome is stored in a folder of JSON files, each under the SHA-256 of all that decides it
(quota_lab/study/keys.py). So a study that was interrupted goes on where it stopped, two tables share what they have in
common, and nothing stale is reported. Calibrated checkpoints are stored beside, as calibration takes longer than
loading.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from quota.allocation.clock import Clock, attached, prefill_clock, prefill_milliseconds
from quota.allocation.drops import WORDS, Drops
from quota.attention.operators import attach_operators
from quota.calibration.curves import Curves
from quota.calibration.sweep import calibrate
from quota.checkpoint.named import load_model
from quota.checkpoint.save import mark, save_pretrained
from quota.errors import QuotaError
from quota.evaluation import evaluate
from quota.files import write_atomically
from quota.models import family, fingerprint
from quota.progress import Steps
from quota.prompts import build_inputs
from quota.pruning.pruner import Pruner
from quota.pruning.recipe import PruningRecipe
from quota.pruning.schedule import Schedule
from quota.pruning.scorers.information import NAME
from quota.samples import Sample
from quota.scheme import QuantizationScheme
from quota_lab.outcomes import kept
from quota_lab.study.guided import GuidedPruner
from quota_lab.study.keys import Keys
from quota_lab.study.plan import Measured, recipe
from quota_lab.study.pruned_graph import GivenSweep, JointSweep
from quota_lab.study.variants import MEASURED, Variant

CLOCK_TURNS = 60
"""Prefills of each schedule by which a budget of time is kept: more than elsewhere, as models are compared by it."""


@dataclass(frozen=True)
class Outcome:
    """What one variant did."""

    right: dict[str, list[bool]]
    """Per task, whether each question was answered right."""
    layers: list[int]
    """Candidate layers; empty without pruning."""
    tokens_per_layer: list[int]
    """Visual tokens of one image that enter each decoder layer."""
    cost: float
    """Prefill arithmetic of the visual tokens in the decoder, relative to keeping all."""


class Workshop:
    """Everything that the variants of one study share."""

    def __init__(
        self,
        model: str,
        questions: Sequence[Sample],
        calibration: Callable[[int, int], list[Sample]],
        cache: Path,
        progress: Steps,
    ) -> None:
        """`calibration(count, seed)` draws calibration samples; `cache` is a folder for outcomes and checkpoints."""
        self.model = model
        self.questions = questions
        self.calibration = calibration
        self.cache = cache
        self.progress = progress
        self._loaded: tuple[str, Any, Any] | None = None
        self._measuring: tuple[int, Drops] | None = None
        self._keys = Keys(model, questions, calibration)

    def outcome(self, variant: Variant) -> Outcome:
        """The variant's outcome, from the cache if it is there."""
        variant = variant.canonical()
        file = self.cache / "outcomes" / f"{self._keys.outcome(variant)}.json"
        facts = {"variant": variant.model_dump(mode="json")}
        return Outcome(**kept(file, facts, lambda: asdict(self._ask(variant))))

    def prefills(self, variants: Sequence[Variant], turns: int) -> list[float]:
        """Seconds of a prefill of the first question by each variant, medians of `turns`; measured anew every time.

        Variants of one model are timed in turns, so that a machine that slows down slows all of them.
        """
        places: dict[str, list[int]] = {}
        variants = [variant.canonical() for variant in variants]
        for place, variant in enumerate(variants):
            name = "full" if variant.scheme is None else str(self._folder(self._quantizer(variant)))
            places.setdefault(name, []).append(place)
        seconds = [0.0] * len(variants)
        for done, group in enumerate(places.values()):
            self.progress("timing", done, len(places))
            own = [variants[place] for place in group]
            # Before the model: what a recipe is made from may be measured on another one.
            recipes = [self._recipes(variant) for variant in own]
            model, processor = self._model(own[0])
            pruners = [self._pruners(model, *each) for each in zip(recipes, (one.scheme for one in own), strict=True)]
            inputs = build_inputs(processor, self.questions[:1]).to(model.device)
            for place, taken in zip(group, prefill_milliseconds(model, inputs, pruners, turns), strict=True):
                seconds[place] = taken / 1000
        return seconds

    def measured(self, variant: Variant) -> Measured:
        """What recipes for this variant's calibration are made from."""
        calibrated = variant.measured_on()
        model, _ = self._quantized(calibrated)
        curves = json.loads((self._folder(calibrated) / "curves.json").read_text(encoding="utf-8"))
        tokens, pruning = curves.pop("reference_tokens"), variant.pruning
        scorer = NAME if pruning is None else pruning.scorer
        facts = Measured(
            Curves(**curves),
            tokens,
            model.config.get_text_config(),
            fingerprint(model),
            clock=lambda: self._clock(calibrated, tokens, scorer),
            times=lambda recipes: self._times(calibrated, recipes),
        )
        if pruning is None or pruning.schedule not in MEASURED:
            return facts
        words = 1 if pruning.schedule == "first word" else WORDS

        def stored(name: str, measure: Callable[[Drops], Any]) -> Any:
            name = name if words == WORDS else f"first_word_{name}"
            return self._stored(calibrated, name, lambda: measure(self._drops(calibrated, tokens, words)))

        def step(done: int, total: int) -> None:
            self.progress(f"measuring drops, seed {variant.seed}", done, total)

        def whole(schedule: Schedule) -> float:
            cuts = zip(schedule.layers, schedule.counts(tokens), strict=True)
            name = "_".join([scorer, "schedule", *(f"{layer}-{count}" for layer, count in cuts)])
            return stored(name, lambda drops: drops.error(schedule, scorer))

        depth = facts.depth
        errors = stored(f"{scorer}_drop_errors", lambda drops: drops.table(depth, scorer, progress=step))
        table = {int(layer): {int(count): error for count, error in row.items()} for layer, row in errors.items()}
        return replace(facts, errors=table, whole=whole)

    def _clock(self, variant: Variant, tokens: int, scorer: str) -> Clock:
        """The clock of the quantised model of `variant` with cuts by `scorer`."""

        def measure() -> dict[str, float]:
            model, processor = self._quantized(variant)
            inputs = self._calibration_inputs(variant, model, processor)
            return asdict(prefill_clock(model, inputs, tokens, variant.scheme, scorer, CLOCK_TURNS))

        return Clock(**self._stored(variant, f"{scorer}_clock", measure))

    def _times(self, variant: Variant, recipes: list[PruningRecipe | None]) -> list[float]:
        """Milliseconds of a prefill of the quantised model of `variant` under each recipe."""

        def measure() -> list[float]:
            model, processor = self._quantized(variant)
            inputs = self._calibration_inputs(variant, model, processor)
            pruners = [[] if one is None else [Pruner(model, one, variant.scheme)] for one in recipes]
            return prefill_milliseconds(model, inputs, pruners, CLOCK_TURNS)

        shown = [None if recipe is None else recipe.model_dump(mode="json") for recipe in recipes]
        return self._stored(variant, f"times_{hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]}", measure)

    def _calibration_inputs(self, variant: Variant, model: Any, processor: Any) -> Any:
        return build_inputs(processor, self.calibration(variant.samples, variant.seed)[:1]).to(model.device)

    def _drops(self, variant: Variant, tokens: int, words: int) -> Drops:
        """What measures drops on the quantised model of `variant`; held for as long as the model is."""
        model, processor = self._quantized(variant)
        if self._measuring is None or self._measuring[0] != words:
            samples = self.calibration(variant.samples, variant.seed)
            self._measuring = words, Drops(model, processor, samples, variant.scheme, tokens, words)
        return self._measuring[1]

    def _stored(self, variant: Variant, name: str, measure: Callable[[], Any]) -> Any:
        """What `measure` gives, as JSON holds it; stored beside the quantised model of `variant`."""
        return kept(self._folder(variant) / f"{name}.json", {}, measure)

    def _ask(self, variant: Variant) -> Outcome:
        with self._ready(variant) as (model, processor):
            name = "full precision" if variant.scheme is None else variant.scheme.name
            step = f"{name}, {'all tokens' if variant.pruning is None else variant.pruning.scorer}, seed {variant.seed}"
            found = evaluate(
                model, processor, self.questions, progress=lambda done, total: self.progress(step, done, total)
            )
            depth = len(family(model).decoder_layers)
            pruner = cast("Pruner | None", getattr(model, "quota_pruner", None))
            if pruner is None:
                parts, inputs = family(model), build_inputs(processor, [self.questions[0]])
                tokens = int(parts.visual_mask(inputs["input_ids"]).sum())
                return Outcome(found.outcomes, [], [tokens] * depth, 1.0)
            chosen = pruner.recipe
            entering = chosen.tokens_per_layer(chosen.reference_tokens, depth)
        price = self.measured(variant).cost(chosen.schedule)
        return Outcome(found.outcomes, list(chosen.layers), entering, price)

    @contextmanager
    def _ready(self, variant: Variant) -> Iterator[tuple[Any, Any]]:
        """The variant's model and processor, pruned for as long as the block runs."""
        recipes = self._recipes(variant)
        model, processor = self._model(variant)
        with attached(self._pruners(model, recipes, variant.scheme)):
            yield model, processor

    def _model(self, variant: Variant) -> tuple[Any, Any]:
        """The variant's model, with every token, and processor."""
        return self._full() if variant.scheme is None else self._quantized(variant)

    def _recipes(self, variant: Variant) -> list[PruningRecipe]:
        """What prunes the variant's model, and before it what prunes the model that guides it, if one does."""
        pruning = variant.pruning
        if pruning is None:
            return []
        guided = pruning.scoring == "full precision" and variant.scheme is not None
        schemes = [None, variant.scheme] if guided else [variant.scheme]
        return [recipe(pruning, self.measured(variant), scheme) for scheme in schemes]

    def _pruners(self, model: Any, recipes: list[PruningRecipe], scheme: QuantizationScheme | None) -> list[Pruner]:
        if len(recipes) < 2:
            return [Pruner(model, one, scheme) for one in recipes]
        guide, _, _ = load_model(self.model)
        return [Pruner(guide, recipes[0]), GuidedPruner(model, recipes[1], scheme, guide)]

    def _full(self) -> tuple[Any, Any]:
        if self._loaded is None or self._loaded[0] != "full":
            self._loaded = self._measuring = None
            model, processor, _ = load_model(self.model)
            self._loaded = "full", model, processor
        return self._loaded[1:]

    def _quantized(self, variant: Variant) -> tuple[Any, Any]:
        """The quantised model of a variant, with every token."""
        quantizer = self._quantizer(variant)
        folder = self._folder(quantizer)
        if self._loaded is None or self._loaded[0] != str(folder):
            if not (folder / "curves.json").is_file():
                self._calibrate(quantizer, folder)
            self._loaded = self._measuring = None
            model, processor, _ = load_model(str(folder / "checkpoint"))
            self._loaded = str(folder), model, processor
        return self._loaded[1:]

    def _quantizer(self, variant: Variant) -> Variant:
        """The variant that stands for all with the same quantised weights."""
        if variant.graph == "unpruned":
            return variant.model_copy(update={"pruning": None})
        return variant

    def _calibrate(self, variant: Variant, folder: Path) -> None:
        scheme, pruning = variant.scheme, variant.pruning
        if scheme is None:
            raise QuotaError("full precision is not calibrated")
        samples = self.calibration(variant.samples, variant.seed)
        plan = None
        if variant.graph != "unpruned" and pruning is not None:
            plan = recipe(pruning, self.measured(variant), None if variant.graph == "pruned" else scheme)
        model, processor, _ = load_model(self.model)
        inputs = [build_inputs(processor, [sample]).to(model.device) for sample in samples]

        def step(done: int, total: int) -> None:
            self.progress(f"calibrating, {scheme.name}, seed {variant.seed}", done, total)

        if plan is None:
            found = calibrate(model, inputs, scheme, step)
        else:
            found = (GivenSweep if variant.graph == "pruned" else JointSweep)(model, inputs, scheme, plan, step).run()
        attach_operators(model, scheme)
        mark(model, scheme, recipe=False)
        save_pretrained(model, processor, folder / "checkpoint")
        curves = asdict(found.curves) | {"reference_tokens": found.reference_tokens}
        write_atomically(folder / "curves.json", json.dumps(curves) + "\n")

    def _folder(self, variant: Variant) -> Path:
        return self.cache / "checkpoints" / self._keys.model(variant)[:32]
