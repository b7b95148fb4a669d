"""The schedule of a recipe as a plot: visual tokens in each decoder layer, and the sensitivities behind them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
from PIL import Image

from quota.errors import QuotaError
from quota.pruning.recipe import PruningRecipe

_DPI = 100
_CANDIDATE, _OTHER, _GRID = "#d64541", "#9aa5b1", "#e5e8eb"


def require_matplotlib() -> None:
    """Raises QuotaError, with the command that installs it, if matplotlib is missing."""
    if find_spec("matplotlib") is None:
        raise QuotaError("the schedule plot needs matplotlib; install it with: pip install 'quota-vlm[plot]'")


def schedule_plot(recipe: PruningRecipe, tokens_per_layer: Sequence[int], width: int) -> Image.Image:
    """Left: visual tokens entering each decoder layer, candidate layers coloured. Right: their sensitivities.

    `width` is the picture's, in pixels. Raises QuotaError without matplotlib.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / _DPI, 3.2), dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])

    layers = range(len(tokens_per_layer))
    colours = [_CANDIDATE if layer in recipe.layers else _OTHER for layer in layers]
    bars = left.bar(layers, tokens_per_layer, color=colours)
    left.bar_label(bars, fontsize=8)
    left.margins(y=0.12)
    left.set_title("Visual tokens entering each decoder layer (red: tokens are dropped after it)", fontsize=10)
    left.set_xlabel("decoder layer")
    left.set_xticks(list(layers))

    if recipe.sensitivities:
        right.bar([str(layer) for layer in recipe.layers], recipe.sensitivities, color=_CANDIDATE)
        right.set_title("Sensitivity to quantisation, equation (1)", fontsize=10)
    else:
        right.set_title("Sensitivities: not measured", fontsize=10)
    right.set_xlabel("candidate layer")

    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        axes.grid(axis="y", color=_GRID)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
