"""The plots of a report. What each shows stands in its description too, in words and numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from quota.allocation.clock import Clock
from quota.allocation.frontier import Point
from quota.allocation.measurements import Measurements
from quota.report.inspection import Inspection
from quota.report.page.asked import Asked
from quota.report.page.parts import PartBytes
from quota.report.page.svg import ACCENT, FAINT, INK, RULE, SURFACE, Plot, figure, inline
from quota.report.tables import percent, percent_range

_WIDE, _HALF = 6.0, 3.2
_LONGEST_NAME = 22
_SHOWN_COUNTS = 4
_AXES: dict[str, tuple[str, Callable[[Point], float | None]]] = {
    "arithmetic": ("prefill arithmetic of visual tokens, %", lambda point: 100 * point.compute),
    "cache": ("KV cache of a typical prompt, KB", lambda point: point.kv_bytes / 1000),
    "time": ("prefill of a typical prompt, ms", lambda point: point.milliseconds),
}


def schedule_plot(inspection: Inspection) -> Plot:
    """Visual tokens that enter each decoder layer. Of an inspection with a recipe."""
    tokens, recipe = inspection.visual_tokens_per_layer, inspection.recipe
    assert tokens is not None and recipe is not None
    with figure(_WIDE, 2.5) as drawn:
        axes = drawn.subplots()
        behind = [layer + 1 for layer in recipe.layers]
        bars = axes.bar(
            range(len(tokens)), tokens, color=[ACCENT if at in behind else FAINT for at in range(len(tokens))]
        )
        if len(tokens) <= 20:
            axes.bar_label(bars, fontsize=7.5, color=INK, padding=1)
        axes.grid(axis="x", visible=False)
        axes.set(xlabel="decoder layer", ylabel="visual tokens", ylim=(0, 1.12 * max(tokens)))
        _whole(axes.xaxis)
        told = ", ".join(map(str, tokens))
        return inline(
            drawn,
            "plot-schedule",
            "Visual tokens that enter each decoder layer",
            [f"From the first layer on: {told}.", "Coloured bars are the first layers behind a cut."],
        )


def curve_plots(measured: Measurements, layers: Sequence[int]) -> list[Plot]:
    """Sensitivity, concentration of attention and redundancy by layer; those in `layers` have cuts behind them."""
    curves = measured.curves
    shown = {
        "sensitivity": ("Sensitivity to quantisation, equation (1)", "relative error", curves.sensitivity),
        "concentration": ("Attention that the ten top tokens get", "share", curves.concentration),
        "redundancy": ("Redundancy of visual tokens", "median cosine", curves.redundancy),
    }
    plots = []
    for name, (title, unit, values) in shown.items():
        with figure(_HALF, 2.1) as drawn:
            axes = drawn.subplots()
            axes.plot(range(len(values)), values, color=FAINT, linewidth=1.2)
            cut = [layer for layer in layers if 0 <= layer < len(values)]
            axes.plot(cut, [values[layer] for layer in cut], "o", color=ACCENT, markersize=4.5)
            axes.set(xlabel="decoder layer", ylabel=unit)
            low, high = min(0.0, *values), max(0.0, *values)
            axes.set_ylim(low, high + 0.08 * (high - low or 1))
            _whole(axes.xaxis)
            told = ", ".join(f"{value:.3g}" for value in values)
            plots.append(inline(drawn, f"plot-{name}", title, [f"From the first layer on: {told}."]))
    return plots


def error_plot(measured: Measurements) -> Plot:
    """What single cuts do to the answer, by the layer that they follow, a line for each of a few counts."""
    layers, counts = sorted(measured.errors), sorted(next(iter(measured.errors.values())), reverse=True)
    most = len(counts) - 1
    places = sorted({round(place * most / (_SHOWN_COUNTS - 1)) for place in range(_SHOWN_COUNTS)})
    with figure(_WIDE, 2.7) as drawn:
        axes = drawn.subplots()
        told = []
        for number, place in enumerate(places):
            count = counts[place]
            errors = [measured.errors[layer][count] for layer in layers]
            fewest = number == len(places) - 1
            style, colour, width = ("-", ACCENT, 1.8) if fewest else (("-", "--", ":")[number], FAINT, 1.2)
            axes.plot(range(len(layers)), errors, style, color=colour, linewidth=width, label=f"{count} kept")
            told.append(f"{count} kept: {', '.join(f'{error:.3g}' for error in errors)}.")
        axes.set_xticks(range(len(layers)), ["projector" if layer < 0 else str(layer) for layer in layers])
        if len(layers) > 16:
            axes.xaxis.set_major_locator(_locator())
        axes.set(xlabel="all tokens but so many dropped after", ylabel="error, nats")
        axes.set_yscale("symlog", linthresh=1e-3)
        axes.set_ylim(0, 1.3 * max(max(row.values()) for row in measured.errors.values()) + 1e-4)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.legend()
        return inline(drawn, "plot-errors", "Error of single cuts, by the layer that they follow", told)


def frontier_plots(points: Sequence[Point], chosen: Point | None) -> list[Plot]:
    """Expected loss against what is spent: arithmetic, KV bytes and, if a machine was timed, time."""
    plots = []
    for name, (unit, of) in _AXES.items():
        if of(points[0]) is None:
            continue
        with figure(_HALF, 2.5) as drawn:
            axes = drawn.subplots()
            axes.plot([of(one) for one in points], [one.error for one in points], color=FAINT, linewidth=1.2)
            for measured, face in ((True, FAINT), (False, SURFACE)):
                some = [one for one in points if one.measured == measured]
                spent, lost = [of(one) for one in some], [one.error for one in some]
                label = "measured whole" if measured else "from single cuts"
                axes.scatter(spent, lost, s=18, color=face, edgecolor=FAINT, zorder=3, label=label)
            if chosen is not None:
                axes.scatter(
                    [of(chosen)], [chosen.error], s=36, color=ACCENT, marker="D", zorder=4, label="this recipe"
                )
            axes.set(xlabel=unit, ylabel="expected loss, nats")
            axes.legend()
            told = "; ".join(f"{of(one):.4g} for {one.error:.3g} nats" for one in points)
            plots.append(
                inline(drawn, f"plot-frontier-{name}", f"Expected loss against {unit.rpartition(',')[0]}", [f"{told}."])
            )
    return plots


def task_plot(asked: Asked) -> Plot:
    """Retention by task with its 95% interval, or accuracy where there is nothing to compare with."""
    whole, interval = asked.retention, asked.retention_interval
    rows: list[tuple[str, float, tuple[float, float]]] = []
    for task, accuracy in asked.evaluation.accuracy.items():
        kept = asked.task_retention(task)
        # Where it is undefined in one task it is for all together.
        rows.append((task, accuracy, asked.task_interval(task)) if whole is None or kept is None else (task, *kept))
    if whole is not None and interval is not None:
        what = "Retention"
        rows.append(("all tasks", whole, interval))
    else:
        what = "Accuracy"
        rows.append(("average", asked.evaluation.average, asked.evaluation.interval))
    with figure(_WIDE, 0.7 + 0.26 * len(rows)) as drawn:
        axes = drawn.subplots()
        for place, (_, share, (low, high)) in enumerate(rows):
            colour = ACCENT if place == len(rows) - 1 else FAINT
            axes.plot([100 * low, 100 * high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot([100 * share], [place], "o", color=colour, markersize=5)
        if whole is not None:
            axes.axvline(100, color=INK, linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(rows)), [_short(task) for task, _, _ in rows])
        axes.set(xlabel=f"{what.lower()}, %, with its 95% interval", ylim=(len(rows) - 0.5, -0.5))
        axes.grid(axis="y", visible=False)
        told = [f"{_short(task)}: {percent(share)} ({percent_range(interval)})." for task, share, interval in rows]
        return inline(drawn, "plot-tasks", f"{what} by task", told)


def bytes_plot(parts: dict[str, PartBytes]) -> Plot:
    """Bytes of each part, as stored and in 16 bits."""
    with figure(_WIDE, 0.8 + 0.4 * len(parts)) as drawn:
        axes = drawn.subplots()
        places = range(len(parts))
        plain = [one.in_16_bits / 1e6 for one in parts.values()]
        stored = [one.stored / 1e6 for one in parts.values()]
        axes.barh([place - 0.19 for place in places], plain, 0.34, color=RULE, edgecolor=FAINT, label="in 16 bits")
        axes.barh([place + 0.19 for place in places], stored, 0.34, color=ACCENT, label="as stored")
        axes.set_yticks(places, list(parts))
        axes.set(xlabel="MB", ylim=(len(parts) - 0.5, -0.5))
        axes.grid(axis="y", visible=False)
        axes.legend()
        told = [
            f"{name}: {one.stored / 1e6:.3g} MB, {one.in_16_bits / 1e6:.3g} MB in 16 bits."
            for name, one in parts.items()
        ]
        return inline(drawn, "plot-bytes", "Bytes of weights by part", told)


def time_parts(clock: Clock, chosen: Point | None, cuts: int) -> dict[str, float]:
    """What the prefill of a typical prompt is made of under the recipe in place, in milliseconds."""
    if chosen is None or chosen.milliseconds is None:
        return {}
    cutting = clock.cut * cuts
    return {
        "tower, projector, text": clock.rest,
        "visual tokens in the decoder": chosen.milliseconds - clock.rest - cutting,
        "cuts": cutting,
    }


def _short(name: str) -> str:
    """A task's name on one line, without what XML cannot hold."""
    line = "".join(letter if letter.isprintable() else " " for letter in name)
    return line if len(line) <= _LONGEST_NAME else f"{line[: _LONGEST_NAME - 1]}\u2026"


def _locator() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)


def _whole(axis: Any) -> None:
    """Ticks at whole numbers only."""
    axis.set_major_locator(_locator())
