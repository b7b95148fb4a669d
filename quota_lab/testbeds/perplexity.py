"""Perplexity of a causal language model, and how sure the ratio of two of them is.

    ppl = exp( mean over predicted tokens of -log p(token | those before it in its window) )

Windows are scored apart from each other, so the first token of each is given and not predicted. Two models score the
same windows; their losses are resampled window by window together, which takes the luck of the text out of the ratio.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from quota.evaluation.statistics import RESAMPLES
from quota.progress import Progress


@torch.no_grad()
def window_losses(model: Any, windows: Tensor, progress: Progress | None = None) -> list[float]:
    """Mean loss (nats a token) of each window of `windows` [N, L], one at a time: nothing is padded."""
    losses = []
    for window in windows:
        inputs = window[None].to(model.device)
        logits = model(input_ids=inputs, use_cache=False).logits[0, :-1].float()
        losses.append(float(cross_entropy(logits, inputs[0, 1:])))
        if progress is not None:
            progress(len(losses), len(windows))
    return losses


def perplexity(losses: Sequence[float]) -> float:
    """Perplexity over windows of one length."""
    return math.exp(sum(losses) / len(losses))


def ratio_interval(losses: Sequence[float], baseline: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95% bootstrap interval of perplexity / baseline perplexity, the same windows scored by both."""
    difference = np.asarray(losses) - np.asarray(baseline)
    drawn = np.random.default_rng(seed).integers(len(difference), size=(RESAMPLES, len(difference)))
    low, high = np.percentile(np.exp(difference[drawn].mean(axis=1)), (2.5, 97.5))
    return float(low), float(high)
