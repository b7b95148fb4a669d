"""Peaks (quota/pruning/scorers/peaks.py) of the tokens as they entered the decoder: what the picture alone says.

    w_i = 1,  v_i the visual token in front of the first decoder layer, at whatever layer it is asked

Whether attention from the text knows better depends on the model. Where it rests on a few tokens while the answer is
spread over more (a sign whose letters are patches of their own), what it leaves out is lost. Calibration measures both
(quota/allocation/scores.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from quota import ops
from quota.errors import QuotaError
from quota.pruning.scorers.signals import Signals

SIGNALS: tuple[str, ...] = ("entering",)
WEIGHTS: Mapping[str, float] = {}


def score(signals: Signals, weights: Mapping[str, float], percentiles: tuple[float, float] = (1.0, 99.0)) -> Tensor:
    """Signals of B rows with V visual tokens -> score [B, V] float32, 0 at padding."""
    if signals.entering is None:
        raise QuotaError("the score 'early' needs the tokens as they entered the decoder")
    even = torch.ones(signals.valid.shape, device=signals.hidden.device)
    return ops.for_tokens(signals.hidden.device).peaks(signals.entering, even, signals.valid)
