"""A report as one HTML file, through a template that escapes whatever it is not told to leave alone.

Questions, answers, tasks and names of folders may hold anything. They are escaped, what no document may hold is
replaced, and a policy in the page's head lets nothing be loaded and no script run but the page's own. Every figure
stands in a `data` element with its exact value, under the name that it has in the JSON of `quota inspect` and
`quota eval`.
"""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import Any

from quota.errors import QuotaError
from quota.files import write_atomically
from quota.report.page import plots
from quota.report.page.asked import FULL, QUANTISED, QUOTA, Asked
from quota.report.page.gather import Report
from quota.report.page.pictures import FRAMES, Drawn, draw
from quota.report.page.svg import Plot, require_extra
from quota.report.tables import describe_scheme, percent, percent_range, size
from quota.version import __version__

_HERE = Path(__file__).parent


def write_report(report: Report, path: Path) -> int:
    """Write the page to `path`, whole or not at all; returns its bytes.

    Raises QuotaError without jinja2 or matplotlib, and if the file cannot be written.
    """
    page = render(report).encode()
    write_atomically(path, page)
    return len(page)


def render(report: Report) -> str:
    """The page. Raises QuotaError without jinja2 or matplotlib."""
    require_extra()
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def clean(value: Any) -> Any:
        return value if isinstance(value, Markup) or not isinstance(value, str) else _allowed(value)

    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=clean,
    )
    environment.filters |= {"percent": percent, "range": percent_range, "size": lambda count: size(round(count))}
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return environment.get_template("page.html.j2").render(
        **_context(report),
        style=Markup(style),
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        svg=lambda plot: Markup(plot.svg),
    )


def _context(report: Report) -> dict[str, Any]:
    """What the template is given."""
    found, asked = report.inspection, report.asked
    recipe, measured = found.recipe, found.measurements
    drawn: list[Drawn] = [] if asked is None else draw([one.followed for one in asked.shown])
    return {
        "report": report,
        "version": __version__,
        "inspection": found,
        "figures": found.figures(),
        "scheme": None if found.scheme is None else describe_scheme(found.scheme),
        "recipe": recipe,
        "measured": measured,
        "places": [] if recipe is None else [_place(layer) for layer in recipe.layers],
        "place": _place,
        "asked": asked,
        "answered": None if asked is None else asked.figures(),
        "variants": [] if asked is None else _variants(asked),
        "drawn": drawn,
        "slider": None if asked is None or not drawn else _slider(report, asked),
        "most_frames": FRAMES,
        "times": _times(report),
        "plots": _plots(report),
    }


def _plots(report: Report) -> dict[str, list[Plot]]:
    """Section -> its plots; those that nothing was measured for are not there."""
    found, asked = report.inspection, report.asked
    made: dict[str, list[Plot]] = {"bytes": [plots.bytes_plot(report.parts)]}
    if found.recipe is not None and found.visual_tokens_per_layer is not None:
        made["schedule"] = [plots.schedule_plot(found)]
        if found.measurements is not None:
            made["curves"] = plots.curve_plots(found.measurements, found.recipe.layers)
            made["errors"] = [plots.error_plot(found.measurements)]
    if found.frontier:
        made["frontier"] = plots.frontier_plots(found.frontier, found.chosen)
    if asked is not None:
        made["tasks"] = [plots.task_plot(asked)]
    return made


def _times(report: Report) -> dict[str, float]:
    found = report.inspection
    if found.measurements is None or found.measurements.clock is None or found.recipe is None:
        return {}
    return plots.time_parts(found.measurements.clock, found.chosen, len(found.recipe.layers))


def _variants(asked: Asked) -> list[str]:
    """Those that the shown questions were put to, the original first."""
    return [name for name in (FULL, QUANTISED, QUOTA) if all(name in one.answers for one in asked.shown)]


def _slider(report: Report, asked: Asked) -> dict[str, Any]:
    """The layers that the slider runs over, and how many visual tokens of each question enter them."""
    recipe = report.inspection.recipe
    before = recipe is not None and recipe.layers[0] < 0
    tokens = [
        [*([len(one.followed.boxes)] if before else []), *one.followed.visual_tokens_per_layer] for one in asked.shown
    ]
    return {"first": -1 if before else 0, "last": len(tokens[0]) - (2 if before else 1), "tokens": tokens}


def _place(layer: int) -> str:
    return "projector" if layer < 0 else f"layer {layer}"


def _allowed(text: str) -> str:
    """The text without characters that a document must not hold: controls, and those that are none."""
    return "".join(letter if _is_character(ord(letter)) else "\ufffd" for letter in text)


def _is_character(code: int) -> bool:
    if code < 0x20 or 0x7F <= code < 0xA0:
        return code in (0x09, 0x0A)
    return not (0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE or 0xD800 <= code < 0xE000)


def refuse_place(path: Path) -> None:
    """Raise QuotaError where no page can be written: for callers with long work to do before it."""
    if path.is_dir():
        raise QuotaError(f"{path} is a folder; give the name of a file")
    above = next(folder for folder in path.resolve().parents if folder.exists())
    if not path.exists() and not (above.is_dir() and os.access(above, os.W_OK)):
        raise QuotaError(f"cannot write {path}: {above} is no folder to write to; choose another place")
