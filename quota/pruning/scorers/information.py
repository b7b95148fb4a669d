"""QUOTA's own score: the tokens that tell most about the picture, given those that are kept already.

Say that a token v_i shows something w of the picture through noise, y_i = <w, v_i> + n_i, w ~ N(0, I), n_i ~ N(0, s2).
What a set S of them tells about w is its mutual information, and greedily the most is told by the token of which most
is still unknown:

    I(S)    = 1/2 ln det(I + G_S / s2)             G_ij = <v_i, v_j>,  s2 = noise * mean |v|^2
    var_i   = G_ii - G_iS (G_S + s2 I)^-1 G_Si     variance of <w, v_i> given S
    next    = argmax var_i
    score_i = var_i when it was chosen; of a token that was not, what is left of it

Greedy choice is within 1 - 1/e of the best set (Nemhauser et al. 1978, as I is submodular; Krause, Singh and Guestrin,
JMLR 9, 2008). Three things come together in it: a token counts by its length, as little is lost with a short one; what
is a mixture of kept tokens counts nothing, be it like none of them; and noise lets a large surface have more tokens
than a speck. CDPruner (quota/pruning/scorers/cdpruner.py) has neither length nor noise, DivPrune only the nearest of
the kept. Attention has no part in it, so any kernel of attention will do, and tokens can go in front of the first layer
as well as behind one: what v_i is there decides. It is one operator of the backend (quota/ops/reference/tokens.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from quota import ops
from quota.errors import QuotaError
from quota.pruning.scorers.signals import Signals

NAME = "information"
SIGNALS: tuple[str, ...] = ("budget",)
WEIGHTS: Mapping[str, float] = {}
NOISE = 0.03
"""Of the mean square of a token's length."""


def score(signals: Signals, weights: Mapping[str, float], percentiles: tuple[float, float] = (1.0, 99.0)) -> Tensor:
    """Signals of B rows with V visual tokens -> score [B, V] float32, 0 at padding.

    Raises QuotaError without the number of tokens that go on.
    """
    if signals.budget is None:
        raise QuotaError("the score 'information' needs to know how many tokens go on")
    return ops.for_tokens(signals.hidden.device).information(signals.hidden, signals.valid, signals.budget, NOISE)
