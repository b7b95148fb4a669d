"""From measurements on the calibration set to a token budget for each candidate layer.

Quantisation noise does not hurt every decoder layer alike. The allocator measures how far the deployed
operators move the input of each candidate layer (its sensitivity), and drops more visual tokens before layers
that suffer little, so that a fragile layer still sees many:

    (1) S_l  = median over samples of ||xq_l - x_l||_2 / (||x_l||_2 + eta)     quota/calibration/curves.py
    (2) s_l  = clip((S_l - P10) / (P90 - P10), 0.1, 0.9)                       `normalize_sensitivities`
    (3) pi_i = softmax_i((1 - s_i) / tau)                                      `schedule`
    (4) r_i  = max(p_min, 1 - (1 - p_min) * sum_{j<=i} pi_j)                   `schedule`
    (5) K_i  = ceil(r_i * V0)                                                  quota/pruning/schedule.py

`keep_ratios` is (2) to (4) in one call, `paper_schedule` all of it. Equations: arXiv 2604.17320; where the paper is
silent (eta, tau, equal percentiles, the candidate layers) the choice is ours and stands here. Everything is a pure
function of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from quota.calibration.curves import Curves, Numbers, finite_numbers
from quota.errors import QuotaError, check_number
from quota.pruning.schedule import Schedule, check_keep

# The published rule chose five layers for both models that were published (28 and 32 layers).
_WIDEST_WINDOW = 5
# A later window must beat an earlier one by a third (1 / 0.75) to be worth carrying all tokens up to it.
_GOOD_ENOUGH = 0.75


def normalize_sensitivities(sensitivities: Numbers) -> list[float]:
    """Equation (2): S of the candidate layers -> s, each in [0.1, 0.9].

    Percentiles run over the candidate layers with linear interpolation. When they coincide (one layer, or all
    alike) nothing tells the layers apart and every s is 0.5.
    """
    values = finite_numbers(sensitivities, "sensitivities")
    low, high = _percentile(values, 0.10), _percentile(values, 0.90)
    if low == high:
        return [0.5] * len(values)
    return [min(max((value - low) / (high - low), 0.1), 0.9) for value in values]


def schedule(normalized: Numbers, keep: float = 0.30, temperature: float = 1.25) -> list[float]:
    """Equations (3) and (4): normalised sensitivities s in layer order -> keep ratios r.

    The ratios never rise and the last is exactly `keep`. Raises QuotaError for `keep` outside (0, 1] or a
    temperature that is not positive.
    """
    values = finite_numbers(normalized, "sensitivities")
    check_keep(keep)
    check_number("temperature", temperature, above=0)
    # The largest exponent is 0 (smallest s), so exp cannot overflow however low the temperature.
    lowest = min(values)
    weights = [math.exp((lowest - value) / temperature) for value in values]
    total = sum(weights)
    ratios, dropped = [], 0.0
    for weight in weights:
        dropped += weight
        ratios.append(max(keep, 1 - (1 - keep) * (dropped / total)))
    # All of pi is spent here: exact by definition, not by luck of rounding.
    ratios[-1] = keep
    return ratios


def keep_ratios(sensitivities: Numbers, keep: float = 0.30, temperature: float = 1.25) -> list[float]:
    """Equations (2) to (4): sensitivities S of the candidate layers, in layer order, -> their keep ratios.

    Args:
        sensitivities: S_l of equation (1), one finite number a candidate layer, not normalised.
        keep: p_min in (0, 1], the share of visual tokens left after the last candidate layer.
        temperature: tau of equation (3); high spreads the drops evenly, low puts them before robust layers.

    Returns one ratio a layer, never rising, the last exactly `keep`. QuotaError for numbers out of range.
    """
    return schedule(normalize_sensitivities(sensitivities), keep, temperature)


def candidate_layers(concentration: Numbers, concentration_iqr: Numbers, redundancy: Numbers, layers: int) -> list[int]:
    """The decoder layers that drop tokens: a contiguous early range, found from three curves over the layers.

    A layer is ready to drop tokens when text attends to few of them (concentration c: the median over
    samples of the summed top-10 text-to-visual attention), when it does so in every sample alike (narrow
    inter-quartile range q of c), and when the tokens repeat each other (redundancy rho: their median
    pairwise cosine):

        readiness_l = c_l * c_l / (c_l + q_l) * (1 + rho_l) / 2

    The product is high only when all three hold, and only its proportions matter, so no curve needs a scale
    of its own. The rule:

    1. Layers 0 and 1 are out (attention is still diffuse there), and the final third (nothing left to save).
    2. The window has min(5, floor(sqrt(layers))) layers, or all that step 1 leaves if fewer.
    3. A window is as good as its weakest layer. The earliest that reaches 75% of the best one is taken: every
       layer of waiting costs a layer run with all the tokens.

    Each curve has one finite number a decoder layer; c and q are not negative. Raises QuotaError otherwise,
    and for a decoder of fewer than four layers, where step 1 leaves none.
    """
    curves = {
        "concentration": finite_numbers(concentration, "concentration"),
        "concentration_iqr": finite_numbers(concentration_iqr, "concentration_iqr"),
        "redundancy": finite_numbers(redundancy, "redundancy"),
    }
    for name, curve in curves.items():
        if len(curve) != layers:
            raise QuotaError(f"the {name} curve has {len(curve)} points for {layers} decoder layers; give one each")
        if name != "redundancy" and min(curve) < 0:
            raise QuotaError(f"the {name} curve must not be negative, got {min(curve)}")

    first, end = 2, layers - layers // 3
    if end <= first:
        raise QuotaError(f"{layers} decoder layers are too few to choose candidates from; pass layers= to name them")
    readiness = [_readiness(*point) for point in zip(*curves.values(), strict=True)]
    width = min(_WIDEST_WINDOW, math.isqrt(layers), end - first)
    starts = range(first, end - width + 1)
    weakest = {start: min(readiness[start : start + width]) for start in starts}
    enough = _GOOD_ENOUGH * max(weakest.values())
    start = next(start for start in starts if weakest[start] >= enough)
    return list(range(start, start + width))


def _readiness(concentration: float, iqr: float, redundancy: float) -> float:
    if concentration == 0:
        return 0.0
    return concentration * concentration / (concentration + iqr) * max(0.0, 1 + redundancy) / 2


def _percentile(values: list[float], share: float) -> float:
    """Linear interpolation between the two order statistics around rank share * (n - 1)."""
    ordered = sorted(values)
    rank = share * (len(ordered) - 1)
    below = math.floor(rank)
    above = math.ceil(rank)
    return ordered[below] + (rank - below) * (ordered[above] - ordered[below])


def paper_schedule(
    curves: Curves, keep: float, temperature: float = 1.25, layers: Sequence[int] | None = None
) -> Schedule:
    """Equations (1) to (4) on the layers that the rule finds, or on `layers`."""
    if layers is None:
        depth = len(curves.sensitivity)
        layers = candidate_layers(curves.concentration, curves.concentration_iqr, curves.redundancy, depth)
    ratios = keep_ratios([curves.sensitivity[layer] for layer in layers], keep, temperature)
    return Schedule(tuple(layers), tuple(ratios))
