"""Pictures of the testbed: two to six framed photographs on a background, and often a sign.

Photographs lie in two rows, of two columns or of three, each a little off the centre of its cell. So where it is, and
which of two is further left or higher, is beyond doubt. A sign takes a strip above, between or below the rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw, ImageFont

import quota_lab.reference.sprites
from quota_lab.testbeds.vlm.backgrounds import background
from quota_lab.testbeds.vlm.photos import Photos
from quota_lab.testbeds.vlm.words import CELLS, COLORS, GROUP, KINDS, LIGHT, SIGNS

PICTURE = 224
STRIP = 48
FRAME = 7
FONTS = ("DejaVuSans-Bold", "DejaVuSerif-Bold", "DejaVuSansMono-Bold", "DejaVuSansCondensed")
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Thing:
    """A photograph of `kind` in a frame of `color`; `box` holds both, in pixels.

    `row` is 0 or 1; `column` 0, 1 or 2, without 1 where there are two columns.
    """

    kind: str
    color: str
    box: Box
    row: int
    column: int

    @property
    def place(self) -> str:
        return CELLS[3 * self.row + self.column]


@dataclass(frozen=True)
class Sign:
    """A board of `color` with a word in capitals; `letters` are the horizontal spans of its letters in pixels."""

    word: str
    color: str
    box: Box
    letters: tuple[tuple[float, float], ...]


@dataclass
class Scene:
    """What a picture shows."""

    things: list[Thing] = field(default_factory=list)
    sign: Sign | None = None


def draw(photos: Photos, rng: Random, signs: float = 0.75, most: int = 6) -> tuple[Image.Image, Scene]:
    """A picture of 224 x 224 pixels of two to `most` photographs; `signs` is the share of pictures with a sign."""
    image, scene, tops = background(PICTURE, rng), Scene(), [0, PICTURE // 2]
    height = PICTURE // 2
    if rng.random() < signs:
        height = (PICTURE - STRIP) // 2
        strip = rng.randint(0, 2)
        tops = [height * row + (STRIP if strip <= row else 0) for row in range(2)]
        scene.sign = _draw_sign(image, height * strip, rng)
    columns = 3 if most > 3 and rng.random() < 0.35 else 2
    cells = [(row, column) for row in range(2) for column in range(columns)]
    kinds = _choose_kinds(rng, rng.randint(columns, min(most, len(cells))))
    for kind, (row, column) in zip(kinds, rng.sample(cells, len(kinds)), strict=True):
        width = PICTURE // columns
        place = row, column if columns == 3 else 2 * column
        scene.things.append(_draw_thing(image, photos, kind, (column * width, tops[row], width, height), place, rng))
    return image, scene


def _draw_thing(image: Image.Image, photos: Photos, kind: str, room: Box, place: tuple[int, int], rng: Random) -> Thing:
    """A framed photograph somewhere in a cell (left, top, width, height)."""
    left, top, width, height = room
    side = min(width, height) - 2
    size = rng.randint(round(0.84 * side), min(side, 104))
    left, top = left + rng.randint(1, width - size - 1), top + rng.randint(1, height - size - 1)
    thing = Thing(kind, rng.choice(list(COLORS)), (left, top, left + size, top + size), *place)
    ImageDraw.Draw(image).rectangle((left, top, left + size - 1, top + size - 1), fill=shade(thing.color, rng))
    inner = size - 2 * FRAME
    image.paste(photos.pick(kind, rng).resize((inner, inner), Image.Resampling.BICUBIC), (left + FRAME, top + FRAME))
    return thing


def shade(color: str, rng: Random) -> tuple[int, int, int]:
    """A colour that still bears its name."""
    red, green, blue = (max(0, min(255, part + rng.randint(-12, 12))) for part in COLORS[color])
    return red, green, blue


def _choose_kinds(rng: Random, count: int) -> list[str]:
    """Mostly different kinds; at times two alike, often of one group."""
    chosen: list[str] = []
    while len(chosen) < count:
        if chosen and rng.random() < 0.06:
            chosen.append(rng.choice(chosen))
            continue
        pool = [kind for kind in KINDS if kind not in chosen]
        if chosen and rng.random() < 0.3:
            group = GROUP[rng.choice(chosen)]
            pool = [kind for kind in pool if GROUP[kind] == group] or pool
        chosen.append(rng.choice(pool))
    return chosen


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(quota_lab.reference.sprites.ASSETS) / "fonts" / f"{name}.ttf", size)


def _draw_sign(image: Image.Image, top: int, rng: Random) -> Sign:
    """Letters are set at least 28 pixels apart: two patches each."""
    word, color = rng.choice(SIGNS), rng.choice(list(COLORS))
    font = _font(rng.choice(FONTS), rng.randint(28, 34))
    spans = [max(28.0, font.getlength(letter) + 1) for letter in word.upper()]
    margin = 8
    width, height = int(sum(spans)) + 2 * margin, rng.randint(40, STRIP - 2)
    left, top = rng.randint(1, PICTURE - width - 1), top + rng.randint(1, STRIP - height - 1)
    box = (left, top, left + width, top + height)
    pen = ImageDraw.Draw(image)
    ink = (16, 16, 16) if color in LIGHT else (250, 250, 250)
    pen.rectangle((left, top, box[2] - 1, box[3] - 1), fill=shade(color, rng), outline=ink)
    letters = tuple(pairwise(accumulate(spans, initial=left + margin)))
    for letter, (start, end) in zip(word.upper(), letters, strict=True):
        pen.text(((start + end) / 2, top + height / 2), letter, font=font, fill=ink, anchor="mm")
    return Sign(word, color, box, letters)
