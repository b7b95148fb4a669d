"""Tables as pictures: where a table has budgets, retention against arithmetic and prefill time, a line a method.

Other tables have a dot a row. A table is what its JSON file holds (quota_lab/study/report.py), so that a picture can
be drawn again, those of one model in one panel, those of two side by side, and beside them what a model gained in time
and memory (`quota curves`).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from quota.report.plot import require_matplotlib
from quota.report.tables import percent
from quota_lab.study.tables import JOINT, QUANTIZED

OURS, GREY, GRID = "#d64541", "#9aa5b1", "#e5e8eb"
_OTHERS = ("#1f5fa8", "#2a9d6f", "#8a5fb0", "#c98a1b", "#4a4a4a", "#3fa7c4", "#a0522d", "#7f8f2f", "#c05f9c", "#5b7083")


class Panel(Protocol):
    """One part of a picture."""

    @property
    def height(self) -> float:
        """In inches."""
        ...

    def draw(self, axes: Any) -> None:
        """Into matplotlib's `Axes`."""
        ...


@dataclass(frozen=True)
class Line:
    """One method over its budgets, from the smallest to the largest."""

    name: str
    cost: list[float]
    """Prefill arithmetic of the visual tokens, in percent of keeping all."""
    seconds: list[float | None]
    kept: list[float]
    """Retention in percent."""
    low: list[float]
    high: list[float]


def lines(table: Mapping[str, Any]) -> list[Line]:
    """The methods of rows called "METHOD, BUDGET"; empty for a table in which none has two budgets."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in table["rows"]:
        name, comma, _ = row["name"].rpartition(", ")
        if comma and row["retention"] is not None:
            found.setdefault(name, []).append(row)
    return [_line(name, rows) for name, rows in found.items() if len(rows) > 1]


def _line(name: str, rows: Sequence[Mapping[str, Any]]) -> Line:
    rows = sorted(rows, key=lambda row: row["cost"])
    kept = [100 * row["retention"] for row in rows]
    low, high = zip(*(row["interval"] for row in rows), strict=True)
    seconds = [row["prefill_seconds"] for row in rows]
    costs = [100 * row["cost"] for row in rows]
    return Line(name, costs, seconds, kept, [100 * end for end in low], [100 * end for end in high])


def picture(tables: Sequence[tuple[str, Mapping[str, Any]]], *more: Panel) -> bytes:
    """Named tables beside each other, as PNG, and `more` behind them; those of one name are one panel.

    Raises QuotaError without matplotlib.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: list[Panel] = [panel for name, table in _together(tables) for panel in _panels(name, table)]
    panels += more
    height = max(panel.height for panel in panels)
    drawn = Figure(figsize=(9 if len(panels) == 1 else 6.5 * len(panels), height), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(drawn)
    for axes, panel in zip(drawn.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel.draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    file = io.BytesIO()
    canvas.print_png(file)
    return file.getvalue()


def _together(tables: Sequence[tuple[str, Mapping[str, Any]]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Tables of one name as one, without a title, and each row once."""
    found: dict[str, Mapping[str, Any]] = {}
    for number, (name, table) in enumerate(tables):
        place = name or str(number)
        if place in found:
            rows = {row["name"]: row for row in (*table["rows"], *found[place]["rows"])}
            table = {"title": "", "rows": list(rows.values())}
        found[place] = table
    return [("" if place.isdecimal() else place, table) for place, table in found.items()]


@dataclass(frozen=True)
class _Curves:
    """Retention over a budget."""

    title: str
    lines: list[Line]
    table: Mapping[str, Any]
    timed: bool
    height: float = 5.0

    def draw(self, axes: Any) -> None:
        ours = next((line for line in self.lines if line.name == JOINT), self.lines[0])
        others = [line for line in self.lines if line is not ours]
        ranked = sorted(others, key=lambda line: -line.kept[0])
        for line, colour in zip(ranked, _OTHERS, strict=False):
            self._draw(axes, line, colour, 1.3, 0.10)
        # Last, so that it lies on top.
        self._draw(axes, ours, OURS, 2.6, 0.20)
        for row in self.table["rows"]:
            if row["name"] == QUANTIZED and row["retention"] is not None:
                axes.axhline(100 * row["retention"], color=GREY, linestyle="--", linewidth=1, label=QUANTIZED)
        axes.set_title(self.title, fontsize=11)
        axes.set_xlabel("prefill, ms" if self.timed else "prefill arithmetic of the visual tokens, %")
        axes.set_ylabel("retention, %")
        axes.grid(color=GRID)
        handles, labels = axes.get_legend_handles_labels()
        # Ours was drawn last of the methods, and is read first.
        order = sorted(range(len(labels)), key=lambda place: labels[place] != ours.name)
        named = [handles[at] for at in order], [labels[at] for at in order]
        axes.legend(*named, fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))

    def _draw(self, axes: Any, line: Line, colour: str, width: float, alpha: float) -> None:
        over = [1000 * taken for taken in line.seconds if taken is not None] if self.timed else line.cost
        points = sorted(zip(over, line.kept, line.low, line.high, strict=True))
        x, kept, low, high = zip(*points, strict=True)
        axes.fill_between(x, low, high, color=colour, alpha=alpha, linewidth=0)
        axes.plot(x, kept, color=colour, linewidth=width, marker="o", markersize=3 + width / 2, label=line.name)


@dataclass(frozen=True)
class _Dots:
    """A dot a row, with its interval and its spread over seeds."""

    table: Mapping[str, Any]

    @property
    def height(self) -> float:
        return 1 + 0.3 * len(self.table["rows"])

    def draw(self, axes: Any) -> None:
        rows = list(reversed(self.table["rows"]))
        for place, row in enumerate(rows):
            if row["retention"] is None or row["interval"] is None:
                continue
            kept, (low, high) = row["retention"], row["interval"]
            reach = [[100 * (kept - low)], [100 * (high - kept)]]
            axes.errorbar(100 * kept, place, xerr=reach, fmt="o", color=OURS, capsize=3)
            if row["spread"] is not None:
                ends = [100 * end for end in row["spread"]]
                axes.plot(ends, [place, place], color=GREY, linewidth=5, alpha=0.6, zorder=0)
        axes.set_yticks(range(len(rows)), [f"{row['name']} ({percent(row['cost'])}% compute)" for row in rows])
        axes.set_xlabel("retention in %: 95% interval over questions; grey: spread over calibration seeds", fontsize=10)
        axes.set_title(self.table["title"], fontsize=11)
        axes.grid(axis="x", color=GRID)


def _panels(name: str, table: Mapping[str, Any]) -> list[_Curves] | list[_Dots]:
    found = lines(table)
    if not found:
        return [_Dots(table)]
    title = ": ".join(filter(None, (name, table["title"])))
    timed = all(taken is not None for line in found for taken in line.seconds)
    return [_Curves(title, found, table, over_time) for over_time in ([False, True] if timed else [False])]
