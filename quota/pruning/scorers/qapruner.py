"""QAPruner: what the tower looks at, and what would quantise worst.

    score = a * semantic + (1 - a) / 2 * (error + range)            each rescaled to [0, 1] within the image

    semantic  attention of the vision tower's [CLS] token
    error     ||Q(v_i) - v_i||_2 under the deployed activation quantiser: the paper's simulated error
    range     max_c v_ic - min_c v_ic: how far the token's outliers reach

(Wang et al., arXiv 2604.02816.) The paper prunes what the projector puts out. No code of it was found, and what it
says in public is our source: a metric of simulated group-wise quantisation error and outlier intensity, joined with a
standard semantic score, so that activation outliers are not discarded. Our reading, then: large error and long range
mean KEEP; the semantic score is VisionZip's; Q is the deployed quantiser (groups, and a block Hadamard before them);
a = 1/2. On the reference model this is below random, and not for want of another reading: docs/study/README.md.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from quota.errors import QuotaError
from quota.pruning.scorers.metrics import combine, normalize
from quota.pruning.scorers.signals import Signals

SIGNALS: tuple[str, ...] = ("tower", "risk")
WEIGHTS: Mapping[str, float] = {"semantic": 0.5, "error": 0.25, "range": 0.25}


def score(signals: Signals, weights: Mapping[str, float], percentiles: tuple[float, float] = (1.0, 99.0)) -> Tensor:
    """Signals of B rows with V visual tokens -> score [B, V] in [0, 1]."""
    metrics = {"semantic": signals.tower, "error": signals.risk}
    hidden = signals.hidden.float()
    metrics["range"] = hidden.amax(dim=-1) - hidden.amin(dim=-1)
    chosen = {}
    for name in weights:
        metric = metrics.get(name)
        if metric is None:
            raise QuotaError(
                f"QAPruner weighs {name!r}, which this forward pass does not measure; set no weight for it"
            )
        chosen[name] = normalize(metric, signals.valid, percentiles)
    return combine(chosen, weights)
