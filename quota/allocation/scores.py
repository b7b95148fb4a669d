"""Which of our two scores a model's schedules go by: the one that loses less after the same cuts.

    peaks   attention from the text at the layer that cuts, times novelty       quota/pruning/scorers/peaks.py
    early   farthest first, of the tokens as they entered the decoder           quota/pruning/scorers/early.py

Compared are single cuts to three tenths after every candidate layer, by what they do to the answer
(quota/allocation/drops.py):

    early  if  sum_l ln( (E_l,early(k) + e) / (E_l,peaks(k) + e) ) < 0,  k = 0.3 V0,  else peaks
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from quota.allocation.table import SMALLEST
from quota.pruning.schedule import Schedule, keep_count

PEAKS = "peaks"
EARLY = "early"
PROBED = 0.3
"""Keep ratio of the cuts that are compared."""


def better_score(error: Callable[[Schedule, str], float], layers: Sequence[int], tokens: int) -> str:
    """The score to go by: `error` is what a schedule does under a score, in nats, `layers` are the candidates."""
    cuts = [Schedule.of_counts([(layer, keep_count(PROBED, tokens))], tokens) for layer in layers]
    ratios = [(error(cut, EARLY) + SMALLEST) / (error(cut, PEAKS) + SMALLEST) for cut in cuts]
    return EARLY if sum(map(math.log, ratios)) < 0 else PEAKS
