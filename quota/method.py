"""The two ways to a recipe: where tokens are dropped, how many, and by which score.

    paper   candidate layers by concentration and redundancy, keep ratios by equations (1) to (4), the published score
    quota   layers and counts of least measured error (quota/drop_errors.py) within a budget of prefill arithmetic, and
            the score `peaks`: the few schedules that are best if errors of cuts add up (quota/budget.py) are measured
            whole, and the best of them is taken

Both end at the final keep ratio that is asked for, and unless told otherwise `quota` spends what `paper` would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from quota.allocation import candidate_layers, keep_count, keep_ratios, tokens_entering
from quota.budget import Errors, Schedule, best_schedules
from quota.calibration import Curves
from quota.drop_errors import SCORER
from quota.evaluation.footprint import prefill_flops_ratio

Method = Literal["paper", "quota"]

TRIED = 16
"""Schedules that are measured whole."""


@dataclass(frozen=True)
class Cuts:
    """What a recipe says about dropping."""

    layers: tuple[int, ...]
    keep_ratios: tuple[float, ...]
    scorer: str


def paper_cuts(curves: Curves, keep: float, temperature: float = 1.25, layers: Sequence[int] | None = None) -> Cuts:
    """Equations (1) to (4) on the layers that the rule finds, or on `layers`."""
    if layers is None:
        depth = len(curves.sensitivity)
        layers = candidate_layers(curves.concentration, curves.concentration_iqr, curves.redundancy, depth)
    ratios = keep_ratios([curves.sensitivity[layer] for layer in layers], keep, temperature)
    return Cuts(tuple(layers), tuple(ratios), "composite")


def published_compute(curves: Curves, tokens: int, keep: float, text_config: Any) -> float:
    """Prefill arithmetic of the visual tokens under `paper_cuts`, relative to keeping all."""
    cuts = paper_cuts(curves, keep)
    depth = len(curves.sensitivity)
    after = {layer: keep_count(ratio, tokens) for layer, ratio in zip(cuts.layers, cuts.keep_ratios, strict=True)}
    return prefill_flops_ratio(tokens_entering(after, tokens, depth), tokens, text_config)


def quota_cuts(
    errors: Errors,
    whole: Callable[[Schedule], float],
    tokens: int,
    depth: int,
    keep: float | None,
    compute: float,
    text_config: Any,
    tried: int = TRIED,
    cut: float = 0.0,
) -> Cuts:
    """The schedule of least error that ends at `keep` and takes at most `compute` of the unpruned prefill arithmetic.

    `errors` are those of single cuts, with an entry for `keep` of `tokens` at every layer; None leaves the end open.
    `whole` measures a schedule, and is asked for `tried` of them at most. A cut itself is charged as so much of a layer
    with all tokens (quota/prefill_clock.py). Raises QuotaError if the budget is too small.
    """

    def work(count: int) -> float:
        return prefill_flops_ratio([count], tokens, text_config)

    final = None if keep is None else keep_count(keep, tokens)
    best = best_schedules(errors, tokens, depth, work, compute * depth + 1e-9, final, tried, cut)
    # Sorted, so that those that begin at one layer are measured one behind the other.
    schedule = min(sorted(best), key=whole)
    # A recipe that drops nothing still has a layer.
    schedule = schedule or ((min(errors), tokens),)
    ratios = [count / tokens for _, count in schedule]
    if keep is not None:
        ratios[-1] = keep
    return Cuts(tuple(layer for layer, _ in schedule), tuple(ratios), SCORER)
