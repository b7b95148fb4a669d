"""Keep ratios by other rules than the paper's, and the budget that costs as much as another one.

With n candidate layers and the final keep ratio p, after the i-th of them (i = 1 .. n):

    paper      equations (1) to (4): most is dropped before the layers that quantisation disturbs least
    reversed   the same with every normalised sensitivity s replaced by 1 - s
    linear     r_i = 1 - (1 - p) i / n        the same number of tokens at every layer
    uniform    r_i = p^(i / n)                the same share of what is left at every layer
    one-shot   r_i = p                        everything at the first layer
    withdraw   one layer, the deepest that a budget allows, after which a single token stays (VTW)

Every rule ends at p, so at one p they differ in compute: tables state it. `keep_for_cost` finds the p at which a rule
costs what another one does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from quota.allocation.paper import normalize_sensitivities, schedule
from quota.pruning.schedule import check_keep
from quota_lab.study.variants import Rule


def ratios(rule: Rule, sensitivities: Sequence[float], keep: float, temperature: float = 1.25) -> list[float]:
    """Keep ratios after each of the candidate layers whose sensitivities (equation 1) are given."""
    check_keep(keep)
    count = len(sensitivities)
    if rule in ("paper", "reversed"):
        normalized = normalize_sensitivities(sensitivities)
        return schedule([1 - s for s in normalized] if rule == "reversed" else normalized, keep, temperature)
    steps = range(1, count + 1)
    if rule == "linear":
        given = [1 - (1 - keep) * i / count for i in steps]
    elif rule == "uniform":
        given = [keep ** (i / count) for i in steps]
    else:
        given = [keep] * count
    # Exact by definition, not by luck of rounding.
    return [*given[:-1], keep]


def keep_for_cost(target: float, tokens: int, cost_at: Callable[[float], float]) -> float:
    """The largest k / tokens, k >= 1, at which `cost_at` (rising in the final keep ratio) is at most `target`.

    A budget is a number of tokens, so trying all of them by bisection is exact.
    """
    low, high = 1, tokens
    while low < high:
        middle = (low + high + 1) // 2
        if cost_at(middle / tokens) <= target + 1e-12:
            low = middle
        else:
            high = middle - 1
    return low / tokens
