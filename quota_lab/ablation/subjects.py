"""What settings are measured on. The seed draws both what is calibrated on and what is asked.

An outcome is kept as it came (answers right or wrong, losses of windows, errors): scores are made from pairs of them, a
quantised one and the full-precision one of the same seed, which answered the same questions.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from quota.checkpoint.named import load_model
from quota.compress import quantize_only
from quota.errors import QuotaError
from quota.evaluation import evaluate, retention
from quota.prompts import build_inputs
from quota.samples import Sample, first_of_each_task, read_samples
from quota_lab import reference
from quota_lab.ablation.settings import Setting
from quota_lab.ablation.token_errors import token_errors
from quota_lab.reference import NAME as REFERENCE
from quota_lab.study.halves import half
from quota_lab.testbeds import llm, smollm2
from quota_lab.testbeds.perplexity import window_losses
from quota_lab.testbeds.prose import drawn_windows, read_prose, tokenize

ERROR_QUESTIONS = 4
"""Of each task: prompts that errors are measured on."""


class Subject(Protocol):
    """A model with something to ask it."""

    @property
    def name(self) -> str: ...

    @property
    def tables(self) -> tuple[str, ...]:
        """Those that make sense for it."""
        ...

    def measure(self, setting: Setting | None, seed: int) -> Any:
        """The outcome, as JSON can hold it, under a setting, or in full precision for None."""
        ...

    def scores(self, outcome: Any, full: Any) -> dict[str, float]:
        """From an outcome and the full-precision one of the same seed: numbers by their names."""
        ...

    def size(self) -> dict[str, Any]:
        """What decides an outcome besides setting and seed."""
        ...


@dataclass(frozen=True)
class Reference:
    """The reference model: retention over its six tasks, and errors of visual and text tokens in its decoder.

    `questions` of each task are drawn from the development half of the suite.
    """

    questions: int = 100
    name: str = REFERENCE
    tables: tuple[str, ...] = ("modules", "methods", "schemes", "groups", "head", "kv-bits", "calibration")

    def measure(self, setting: Setting | None, seed: int) -> dict[str, Any]:
        model, processor, _ = load_model(REFERENCE)
        asked = self._drawn(seed)
        errors = {"visual": 0.0, "text": 0.0}
        if setting is not None:
            samples = reference.calibration_samples(setting.samples, seed)
            quantize_only(model, processor, samples, setting.scheme())
            exact, _, _ = load_model(REFERENCE)
            prompts = [build_inputs(processor, [sample]) for sample in first_of_each_task(asked, ERROR_QUESTIONS)]
            errors = token_errors(exact, model, prompts)
        return {"right": evaluate(model, processor, asked).outcomes, "errors": errors}

    def scores(self, outcome: dict[str, Any], full: dict[str, Any]) -> dict[str, float]:
        kept = retention(outcome["right"], full["right"])
        if kept is None:
            raise QuotaError("the full-precision model answers nothing right in some task; ask more questions")
        errors = {f"error, {kind} tokens": error for kind, error in outcome["errors"].items()}
        return {"retention %": 100 * kept} | errors

    def size(self) -> dict[str, Any]:
        return {"questions": self.questions}

    def _drawn(self, seed: int) -> list[Sample]:
        development = half(read_samples(reference.suite_path()), "development")
        random.Random(seed).shuffle(development)
        chosen = first_of_each_task(development, self.questions)
        fewest = min(Counter(sample.task for sample in chosen).values())
        if fewest < self.questions:
            raise QuotaError(f"a task has {fewest} questions in the development half; ask no more than that of each")
        return chosen


@dataclass(frozen=True)
class SmolLM2:
    """Perplexity ratio of SmolLM2-135M on `windows` windows of 1024 tokens drawn from `prose`."""

    prose: Path
    calibration: Path
    windows: int = 16
    name: str = "smollm2"
    tables: tuple[str, ...] = ("methods", "schemes", "groups", "head", "kv-bits", "calibration")

    def measure(self, setting: Setting | None, seed: int) -> list[float]:
        llm.refuse_same(self.prose, self.calibration)
        model, tokenizer = smollm2.load()
        tokens = tokenize(tokenizer, read_prose(self.prose))
        scored = drawn_windows(tokens, self.windows, llm.WINDOW, seed)
        if setting is not None:
            windows = llm.calibration_windows(tokenizer, self.calibration, setting.samples, seed)
            llm.quantize(model, setting.scheme(), windows)
        return window_losses(model, scored)

    def scores(self, outcome: list[float], full: list[float]) -> dict[str, float]:
        return {"perplexity ratio": math.exp((sum(outcome) - sum(full)) / len(full))}

    def size(self) -> dict[str, Any]:
        fields = asdict(self)
        return {"windows": self.windows} | {name: fields[name].name for name in ("prose", "calibration")}
