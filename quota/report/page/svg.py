"""Plots of matplotlib as inline SVG: colours and letters are the page's, so that they follow light and dark.

matplotlib is given colours that stand for names; in what it writes they become custom properties of the page's style
(`var(--accent)`). Text stays text. Numbers that it puts into identifiers depend on nothing but what is drawn, and carry
the plot's name, as several plots stand in one document.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from xml.etree import ElementTree

from quota.errors import QuotaError

INK, FAINT, RULE, ACCENT, SURFACE = "#010101", "#020202", "#030303", "#040404", "#050505"
_PROPERTIES = {INK: "--ink", FAINT: "--faint", RULE: "--rule", ACCENT: "--accent", SURFACE: "--surface"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "quota",
    # A task may be called anything, "$" included.
    "text.parse_math": False,
    "font.size": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
_NAMESPACE = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True)
class Plot:
    """A drawn plot."""

    svg: str
    """An SVG element, made by us: not to be escaped."""
    title: str


def require_extra() -> None:
    """Raises QuotaError, with the command that installs them, if jinja2 or matplotlib is missing."""
    for package in ("jinja2", "matplotlib"):
        if find_spec(package) is None:
            raise QuotaError(f"a report needs {package}; install it with: pip install 'quota-vlm[report]'")


@contextmanager
def figure(width: float, height: float) -> Iterator[Any]:
    """Yield a figure of so many inches in the page's style."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Letters that its own font lacks: the page's have them.
        warnings.filterwarnings("ignore", "Glyph")
        yield Figure(figsize=(width, height), layout="constrained")


def inline(drawn: Any, name: str, title: str, description: Sequence[str]) -> Plot:
    """The figure as an SVG element that has a title and says in words what it shows. `name` is unique in the page."""
    data = io.BytesIO()
    drawn.savefig(data, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(data.getvalue())
    _prune(root)
    referred = _own_identifiers(root, name)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_NAMESPACE)
        if element.get("id") not in referred:
            element.attrib.pop("id", None)
    root.attrib.clear()
    width, height = (round(72 * float(side)) for side in drawn.get_size_inches())
    root.attrib |= {"viewBox": f"0 0 {width} {height}", "role": "img", "aria-labelledby": f"{name}-title {name}-desc"}
    for place, (tag, text) in enumerate((("title", title), ("desc", " ".join(description)))):
        told = ElementTree.Element(tag, {"id": f"{name}-{tag}"})
        told.text = text
        root.insert(place, told)
    text = ElementTree.tostring(root, encoding="unicode")
    for colour, property_name in _PROPERTIES.items():
        text = text.replace(colour, f"var({property_name})")
    return Plot(text, title)


def _prune(root: ElementTree.Element) -> None:
    """Take out what matplotlib says of itself, and its style, which would hold for the whole page."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)


def _own_identifiers(root: ElementTree.Element, name: str) -> set[str]:
    """Put `name` in front of all identifiers, and say which of them something refers to."""
    referred = set()

    def own(found: re.Match[str]) -> str:
        referred.add(f"{name}-{found[1]}")
        return f"#{name}-{found[1]}"

    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "id":
                element.set("id", f"{name}-{value}")
            elif key == _LINK:
                del element.attrib[key]
                element.set("href", re.sub(r"#(\w+)", own, value))
            elif "url(#" in value:
                element.set(key, re.sub(r"#(\w+)(?=\))", own, value))
    return referred
