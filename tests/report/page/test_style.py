"""Text of the page can be read in light and in dark: contrasts of WCAG 2.2, level AA."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from quota.report.page import svg

STYLE = (Path(svg.__file__).parent / "page.css").read_text(encoding="utf-8")
LIGHT, DARK = (dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", STYLE, re.S))


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("text", ["ink", "faint", "accent", "right", "wrong"])
@pytest.mark.parametrize("behind", ["page", "surface"])
def test_contrast(colours: dict[str, str], text: str, behind: str) -> None:
    high, low = sorted((luminance(colours[text]), luminance(colours[behind])), reverse=True)
    assert (high + 0.05) / (low + 0.05) >= 4.5


def test_what_moves_can_be_stopped() -> None:
    assert "prefers-reduced-motion: reduce" in STYLE and "transition: none" in STYLE
