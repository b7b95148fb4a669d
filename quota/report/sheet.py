"""Lay captioned pictures out on one sheet: a row a question, a panel a layer."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from quota.files import write_atomically

_MARGIN = 18
_GAP = 12
_INK = (33, 37, 41)
_FAINT = (108, 117, 125)
_TITLE, _CAPTION = 19, 15
_LINE = 1.5
"""Height of a line, in heights of its letters."""
_NARROWEST = 480


@dataclass(frozen=True)
class Row:
    """A heading line, further lines in grey, and panels of (caption, picture)."""

    heading: str
    notes: Sequence[str]
    panels: Sequence[tuple[str, Image.Image]]


def draw_sheet(rows: Sequence[Row]) -> Image.Image:
    """All rows on white, one below the other; as wide as the widest needs."""
    drawn = [_draw_row(row) for row in rows]
    return stack(drawn)


def stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other on white, aligned left."""
    width = max(picture.width for picture in pictures)
    sheet = Image.new("RGB", (width, sum(picture.height for picture in pictures)), "white")
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all. Raises QuotaError if it cannot be written."""
    data = io.BytesIO()
    picture.save(data, format="PNG")
    write_atomically(path, data.getvalue())


def _draw_row(row: Row) -> Image.Image:
    title, caption = ImageFont.load_default(_TITLE), ImageFont.load_default(_CAPTION)
    width = max(_NARROWEST, sum(picture.width + _GAP for _, picture in row.panels) - _GAP)
    lines = [(line, title, _TITLE, _INK) for line in _wrap(row.heading, title, width)]
    lines += [(line, caption, _CAPTION, _FAINT) for note in row.notes for line in _wrap(note, caption, width)]
    height = sum(_LINE * size for _, _, size, _ in lines)
    height += _LINE * _CAPTION + max(picture.height for _, picture in row.panels)
    canvas = Image.new("RGB", (width + 2 * _MARGIN, int(height) + 2 * _MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    x, y = _MARGIN, float(_MARGIN)
    for line, font, size, colour in lines:
        draw.text((x, y), line, font=font, fill=colour)
        y += _LINE * size
    for text, picture in row.panels:
        draw.text((x, y), text, font=caption, fill=_INK)
        canvas.paste(picture, (x, int(y + _LINE * _CAPTION)))
        x += picture.width + _GAP
    return canvas


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """The text in lines of at most `width` pixels, broken at spaces."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
