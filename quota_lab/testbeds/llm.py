"""Perplexity of a language model that is quantised with its cache, beside the full-precision one.

The weights of a GGUF file are quantised anew, with the sweep that quantises a vision-language model, and scored with
the deployed operators, cache included.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from quota import ops
from quota.attention.operators import attach_operators
from quota.calibration.sweep import calibrate
from quota.errors import QuotaError
from quota.files import sha256
from quota.progress import Progress, Steps, silent
from quota.scheme import QuantizationScheme
from quota_lab.testbeds import gguf
from quota_lab.testbeds.perplexity import perplexity, ratio_interval, window_losses
from quota_lab.testbeds.prose import drawn_windows, first_windows, read_prose, tokenize

WINDOW = 1024
"""Tokens of a scored window."""
WINDOWS = 50
CALIBRATION_WINDOW = 256
CALIBRATION_SAMPLES = 128


@dataclass(frozen=True)
class Outcome:
    """A quantised model beside the full-precision one, on the same windows."""

    digest: str
    """SHA-256 of the file."""
    scheme: QuantizationScheme
    full_losses: list[float]
    losses: list[float]
    operators: ops.Usage

    @property
    def model(self) -> str:
        """Its name, or the digest of an unknown file."""
        return gguf.model_name(self.digest)

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
        """What `quota testbed llm --json` writes."""
        return {
            "model": self.model,
            "sha256": self.digest,
            "scheme": self.scheme.model_dump(mode="json"),
            "full_perplexity": self.full_perplexity,
            "perplexity": self.perplexity,
            "ratio": self.ratio,
            "ratio_interval": list(ratio_interval(self.losses, self.full_losses)),
            "tokens": len(self.losses) * WINDOW,
            "backends": self.operators.backends(),
        }


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
    file: Path,
    scheme: QuantizationScheme,
    calibration: Path,
    prose: Path,
    samples: int = CALIBRATION_SAMPLES,
    windows: int = WINDOWS,
    seed: int = 0,
    progress: Steps = silent,
) -> Outcome:
    """Perplexity of the beginning of `prose` for the model in a GGUF file, in full precision and under `scheme`.

    It is calibrated on other prose. Raises QuotaError for a missing package or file, a model that is not supported, a
    text that is too short, and one text given twice.
    """
    refuse_same(prose, calibration)
    digest = sha256(file)
    model, tokenizer = gguf.load(file)
    scored = scored_windows(tokenizer, prose, windows)
    calibrated = calibration_windows(tokenizer, calibration, samples, seed)
    full = window_losses(model, scored, partial(progress, "full precision"))
    with ops.record() as operators:
        quantize(model, scheme, calibrated, partial(progress, "calibrating"))
        losses = window_losses(model, scored, partial(progress, scheme.name))
    return Outcome(digest, scheme, full, losses, operators)
