"""Measured prefill time: what the arithmetic of a table is held against."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from quota.samples import Sample, build_inputs


def prefill_seconds(model: Any, processor: Any, sample: Sample, turns: int) -> float:
    """Seconds of the prefill of one question, vision tower included: the median of `turns`, after one to warm up."""
    inputs = build_inputs(processor, [sample]).to(model.device)
    seconds = []
    for _ in range(turns + 1):
        began = time.perf_counter()
        with torch.inference_mode():
            model(**inputs, use_cache=True, logits_to_keep=1)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])
