"""From measurements on the calibration set to a token budget for each candidate layer.

Quantisation noise does not hurt every decoder layer alike. The allocator measures how far the deployed
operators move the input of each candidate layer (its sensitivity), and drops more visual tokens before layers
that suffer little, so that a fragile layer still sees many:

    (1) S_l  = median over samples of ||xq_l - x_l||_2 / (||x_l||_2 + eta)     `relative_error`, `sensitivity`
    (2) s_l  = clip((S_l - P10) / (P90 - P10), 0.1, 0.9)                       `normalize_sensitivities`
    (3) pi_i = softmax_i((1 - s_i) / tau)                                      `schedule`
    (4) r_i  = max(p_min, 1 - (1 - p_min) * sum_{j<=i} pi_j)                   `schedule`
    (5) K_i  = ceil(r_i * V0)                                                  `keep_count`

`keep_ratios` is (2) to (4) in one call. Equations: arXiv 2604.17320; where the paper is silent (eta, tau,
equal percentiles, the candidate layers) the choice is ours and stands here. Everything is a pure function
of numbers.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from quota.errors import QuotaError

Numbers = Sequence[float] | Tensor

# Far above the round-off of a ratio (1e-16 of its value), far below what one token of an image is worth.
_ROUND_OFF = 1e-12

# The published rule chose five layers for both models that were published (28 and 32 layers).
_WIDEST_WINDOW = 5
# A later window must beat an earlier one by a third (1 / 0.75) to be worth carrying all tokens up to it.
_GOOD_ENOUGH = 0.75


def relative_error(xq: Tensor, x: Tensor, eta: float = 1e-6) -> float:
    """Relative error of one sample's layer input, the fraction inside equation (1).

    `x` is full precision, `xq` the same under the deployed operators: equal shapes, no padding; the norms run
    over all elements. Raises QuotaError if the shapes differ.
    """
    if xq.shape != x.shape:
        raise QuotaError(f"relative_error needs equal shapes, got {tuple(xq.shape)} and {tuple(x.shape)}")
    error = torch.linalg.vector_norm(xq.double() - x.double())
    return float(error / (torch.linalg.vector_norm(x.double()) + eta))


def sensitivity(errors: Numbers) -> float:
    """Equation (1): S_l, the median of one layer's relative errors over the samples (at least one)."""
    return statistics.median(_finite(errors, "relative errors"))


def normalize_sensitivities(sensitivities: Numbers) -> list[float]:
    """Equation (2): S of the candidate layers -> s, each in [0.1, 0.9].

    Percentiles run over the candidate layers with linear interpolation. When they coincide (one layer, or all
    alike) nothing tells the layers apart and every s is 0.5.
    """
    values = _finite(sensitivities, "sensitivities")
    low, high = _percentile(values, 0.10), _percentile(values, 0.90)
    if low == high:
        return [0.5] * len(values)
    return [min(max((value - low) / (high - low), 0.1), 0.9) for value in values]


def schedule(normalized: Numbers, keep: float = 0.30, temperature: float = 1.25) -> list[float]:
    """Equations (3) and (4): normalised sensitivities s in layer order -> keep ratios r.

    The ratios never rise and the last is exactly `keep`. Raises QuotaError for `keep` outside (0, 1] or a
    temperature that is not positive.
    """
    values = _finite(normalized, "sensitivities")
    check_keep(keep)
    if not (math.isfinite(temperature) and temperature > 0):
        raise QuotaError(f"temperature must be a positive number, got {temperature}")
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


def keep_count(ratio: float, tokens: int) -> int:
    """Equation (5): how many of `tokens` visual tokens a keep ratio leaves, rounded up.

    Immune to round-off: 7% of 100 is 7, though 0.07 * 100 is a hair above 7 in floating point. Never above
    `tokens`. Raises QuotaError for a ratio outside (0, 1] or a negative number of tokens.
    """
    check_keep(ratio)
    if tokens < 0:
        raise QuotaError(f"a number of visual tokens cannot be negative, got {tokens}")
    return min(tokens, math.ceil(ratio * tokens * (1 - _ROUND_OFF)))


def tokens_entering(schedule: Mapping[int, int], tokens: int, depth: int) -> list[int]:
    """Visual tokens that enter each of `depth` decoder layers.

    `schedule` says how many of the `tokens` go on from a layer; -1 stands for the place before the first one.
    """
    entering = [schedule.get(-1, tokens)]
    for layer in range(depth - 1):
        entering.append(schedule.get(layer, entering[-1]))
    return entering


def check_keep(keep: float) -> None:
    """Raise QuotaError unless `keep` is a ratio in (0, 1]."""
    if not 0 < keep <= 1:
        raise QuotaError(f"keep must be above 0 and at most 1 (0.30 keeps 30% of the visual tokens), got {keep}")


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
        "concentration": _finite(concentration, "concentration"),
        "concentration_iqr": _finite(concentration_iqr, "concentration_iqr"),
        "redundancy": _finite(redundancy, "redundancy"),
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


def _finite(numbers: Numbers, name: str) -> list[float]:
    values = [float(number) for number in numbers]
    if not values:
        raise QuotaError(f"{name} are empty; give at least one number")
    if not all(map(math.isfinite, values)):
        raise QuotaError(f"{name} hold NaN or infinity; check the model's outputs on the calibration samples")
    return values
