"""Measurements made up, of a model with 16 visual tokens in 6 layers (`tiny_llava`) or of any other size."""

from __future__ import annotations

import random
from typing import Any

from quota.allocation.cache_cost import CacheCost
from quota.allocation.drops import RATIOS, candidates
from quota.allocation.measurements import Measurements
from quota.allocation.prompt import TypicalPrompt
from quota.calibration.curves import Curves
from quota.pruning.schedule import keep_count
from quota.scheme import QuantizationScheme


def table(layers: list[int], tokens: int, seed: int = 0) -> dict[int, dict[int, float]]:
    """Errors of single cuts: less the later a cut is and the more it keeps, and not quite regular."""
    chance = random.Random(seed)
    return {
        layer: {
            keep_count(ratio, tokens): 0.5 * 0.85**place * (1 / ratio - 1) ** 1.3 * chance.uniform(0.8, 1.25)
            for ratio in RATIOS
        }
        for place, layer in enumerate(layers)
    }


def measurements(depth: int = 6, tokens: int = 16, **changes: Any) -> Measurements:
    """Without a clock, and without schedules measured whole."""
    rises = [0.1 + layer / 100 for layer in range(depth)]
    fields = {
        "model_fingerprint": "model",
        "calibration_fingerprint": "samples",
        "scheme": QuantizationScheme(),
        "scorer": "information",
        "reference_tokens": tokens,
        "curves": Curves(rises, rises, rises, rises),
        "errors": table(candidates(depth), tokens),
        "prompt": TypicalPrompt(((32, 32),), 20),
        "cache": CacheCost(2808.0, 312.0),
    }
    return Measurements.of(**fields | changes)
