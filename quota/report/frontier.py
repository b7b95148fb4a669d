"""The frontier as a plot: the expected loss of the best schedules against what they spend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from quota.allocation.frontier import Point
from quota.errors import QuotaError
from quota.report.inspection import Inspection
from quota.report.plot import require_matplotlib
from quota.report.sheet import save_picture

_DPI = 100
_LINE, _CHOSEN, _GRID = "#3b6ea5", "#d64541", "#e5e8eb"
_Axis = tuple[str, Callable[[Point], float | None]]
_AXES: tuple[_Axis, ...] = (
    ("prefill arithmetic of visual tokens, %", lambda point: 100 * point.compute),
    ("KV cache of a typical prompt, KB", lambda point: point.kv_bytes / 1000),
    ("prefill of a typical prompt, ms", lambda point: point.milliseconds),
)


def draw_frontier(inspection: Inspection, path: Path) -> None:
    """Write a PNG: loss against arithmetic, KV bytes and, if a machine was timed, time; the recipe in place in red.

    Raises QuotaError without matplotlib, and for a checkpoint without measurements.
    """
    if not inspection.frontier:
        raise QuotaError("there is no frontier to draw: the checkpoint holds no measurements of drops")
    require_matplotlib()
    save_picture(_plot(inspection.frontier, inspection.chosen), path)


def _plot(points: list[Point], chosen: Point | None) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    axes = [(name, of) for name, of in _AXES if of(points[0]) is not None]
    figure = Figure(figsize=(4.6 * len(axes), 3.6), dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for place, (name, of) in zip(np.atleast_1d(figure.subplots(1, len(axes), sharey=True)), axes, strict=True):
        place.plot([of(one) for one in points], [one.error for one in points], color=_LINE, linewidth=1.5)
        for measured, face in ((True, _LINE), (False, "white")):
            some = [one for one in points if one.measured == measured]
            spent, lost = [of(one) for one in some], [one.error for one in some]
            label = "measured whole" if measured else "from single cuts"
            place.scatter(spent, lost, color=face, edgecolor=_LINE, zorder=3, label=label)
        if chosen is not None:
            place.scatter([of(chosen)], [chosen.error], color=_CHOSEN, marker="D", zorder=4, label="this recipe")
        place.set_xlabel(name)
        place.spines[["top", "right"]].set_visible(False)
        place.set_axisbelow(True)
        place.grid(color=_GRID)
    figure.axes[0].set_ylabel("expected loss, nats")
    figure.axes[0].legend(frameon=False, fontsize=8)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
