"""QUOTA's own score: how much attention goes to what a token stands for, times how new it is.

    w_i     = 1/H sum_h sum_{j in text} A_h[j, i]               attention from the text (`inter`); 1 before the decoder
    mass_i  = sum_j w_j max(0, cos(v_i, v_j))^16                attention of all that looks like v_i, itself included
    nov_i   = min_{j ahead of i} (1 - cos(v_i, v_j))            how new v_i is beside all tokens that are ahead of it
    score_i = sqrt(mass_i) nov_i

j is ahead of i if w_j > w_i, or w_j = w_i and j < i. Novelty alone (quota/pruning/scorers/novelty.py) weighs a token
by its own attention. But patches of one surface share theirs: a background that the question asks about gives little
to each of its many patches, and odd tokens that stand for nothing but themselves push out the few that speak for all
of it. The mass is what the group has together: before the decoder its size, so surfaces come before specks. Novelty
then takes one patch of each group first. These are the peaks of Rodriguez and Laio's clustering (Science 344, 2014),
with attention for density. The order stays that of the single token's attention: by mass it is worse
(docs/study/README.md).

No loop over tokens: a matrix product and one pass over it, together one operator of the backend
(quota/ops/reference/tokens.py). A cosine of 0.96 counts half.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from quota import ops
from quota.pruning.scorers.novelty import text_attention
from quota.pruning.scorers.signals import Signals

SIGNALS: tuple[str, ...] = ("inter",)
WEIGHTS: Mapping[str, float] = {}


def score(signals: Signals, weights: Mapping[str, float], percentiles: tuple[float, float] = (1.0, 99.0)) -> Tensor:
    """Signals of B rows with V visual tokens -> score [B, V] float32, 0 at padding."""
    peaks = ops.for_tokens(signals.hidden.device).peaks
    return peaks(signals.hidden, text_attention(signals), signals.valid)
