"""Pictures of the reference world, with everything that is known about them.

A picture is a place with up to six things in it (emoji art and plain shapes) and, half the time, a sign with a
word. `draw` returns the picture together with its `Scene`, from which questions are asked (`questions.py`) and
patch labels are read (`labels.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate, pairwise
from random import Random

from PIL import Image, ImageDraw, ImageFont

from quota_lab.reference.scenes import background
from quota_lab.reference.sprites import ASSETS, sprites
from quota_lab.reference.words import CATEGORY, COLORS, EMOJI, LETTERS, SCENES, SHAPES, SIGNS

PICTURE = 144
FONTS = ("DejaVuSans-Bold", "DejaVuSerif-Bold", "DejaVuSansMono-Bold", "DejaVuSansCondensed")
BOARDS = (((252, 252, 248), (16, 16, 16)), ((250, 226, 90), (16, 16, 16)), ((30, 60, 120), (250, 250, 250)))
LETTER_SPAN = 13.0  # pixels, one more than a patch
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Thing:
    """One object: an emoji (`color` is None) or a plain shape, with its box in pixels."""

    name: str
    color: str | None
    box: Box

    @property
    def words(self) -> str:
        return self.name if self.color is None else f"{self.color} {self.name}"

    @property
    def center(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True)
class Sign:
    """A board with a word; `letters` are the horizontal spans of its letters in pixels."""

    word: str
    box: Box
    letters: tuple[tuple[float, float], ...]


@dataclass
class Scene:
    """What a picture shows. `owners` is a picture of the index + 1 of the thing seen at each pixel (0: none)."""

    place: str
    things: list[Thing] = field(default_factory=list)
    sign: Sign | None = None
    owners: Image.Image = field(default_factory=lambda: Image.new("L", (PICTURE, PICTURE)))


def draw(rng: Random, unlisted_words: float = 0.0, signs: float = 0.5) -> tuple[Image.Image, Scene]:
    """Draw one picture of 144 x 144 pixels.

    `signs` is the share of pictures with a sign; `unlisted_words` is the share of signs that carry random letters
    rather than a word of `words.SIGNS`.
    """
    scene = Scene(rng.choice(SCENES))
    image = background(scene.place, PICTURE, rng)
    taken: list[Box] = []
    if rng.random() < signs:
        scene.sign = _draw_sign(image, _sign_word(rng, unlisted_words), rng)
        taken.append(scene.sign.box)
    for name, color in _choose_things(rng):
        if scene.place == "space" and color == "black":
            continue  # nobody could see it
        box = _free_box(taken, rng)
        if box is None:
            continue
        taken.append(box)
        scene.things.append(Thing(name, color, box))
        mask = _draw_thing(image, scene.things[-1], rng)
        scene.owners.paste(len(scene.things), box[:2], mask)
    return image, scene


def _sign_word(rng: Random, unlisted: float) -> str:
    if rng.random() < unlisted:
        return "".join(rng.choices(LETTERS, k=rng.randint(3, 5)))
    return rng.choice(SIGNS)


def _choose_things(rng: Random) -> list[tuple[str, str | None]]:
    """One to six (name, colour); often several alike, and near misses of what is there."""
    chosen: list[tuple[str, str | None]] = []
    total = rng.randint(1, 6)
    while len(chosen) < total:
        if chosen and rng.random() < 0.3:
            chosen.append(_relative(rng.choice(chosen), rng))
            continue
        if rng.random() < 0.4:
            one: tuple[str, str | None] = (rng.choice(SHAPES), rng.choice(list(COLORS)))
        else:
            one = (rng.choice(list(EMOJI)), None)
        copies = rng.randint(2, 4) if rng.random() < 0.3 else 1
        chosen.extend([one] * copies)
    rng.shuffle(chosen)
    return chosen[:6]


def _relative(one: tuple[str, str | None], rng: Random) -> tuple[str, str | None]:
    name, color = one
    if color is None:
        return rng.choice([other for other in EMOJI if CATEGORY[other] == CATEGORY[name]]), None
    if rng.random() < 0.5:
        return rng.choice(SHAPES), color
    return name, rng.choice(list(COLORS))


def _free_box(taken: list[Box], rng: Random) -> Box | None:
    for _ in range(40):
        size = rng.randint(24, 40)
        left, top = rng.randint(0, PICTURE - size), rng.randint(0, PICTURE - size)
        box = (left, top, left + size, top + size)
        if not any(_overlap(box, other) for other in taken):
            return box
    return None


def _overlap(one: Box, other: Box, allowed: int = 3) -> bool:
    return (
        one[0] < other[2] - allowed
        and other[0] < one[2] - allowed
        and one[1] < other[3] - allowed
        and other[1] < one[3] - allowed
    )


def _draw_thing(image: Image.Image, thing: Thing, rng: Random) -> Image.Image:
    """Paste `thing` onto `image`; return its mask, in the size of its box."""
    size = thing.box[2] - thing.box[0]
    if thing.color is None:
        sprite = sprites()[thing.name]
        if rng.random() < 0.5:
            sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        sprite = sprite.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=None)
        mask = sprite.getchannel("A")
        image.paste(sprite, thing.box[:2], mask)
        return mask
    mask = Image.new("L", (2 * size, 2 * size))
    _shape(ImageDraw.Draw(mask), thing.name, 2 * size - 1)
    mask = mask.resize((size, size), Image.Resampling.BILINEAR)
    red, green, blue = (max(0, min(255, part + rng.randint(-10, 10))) for part in COLORS[thing.color])
    image.paste((red, green, blue), thing.box, mask)
    return mask


def _shape(draw: ImageDraw.ImageDraw, name: str, size: int) -> None:
    half = size / 2
    if name == "circle":
        draw.ellipse((0, 0, size, size), fill=255)
    elif name == "square":
        edge = size // 12
        draw.rectangle((edge, edge, size - edge, size - edge), fill=255)
    elif name == "triangle":
        draw.polygon([(half, 0), (size, size), (0, size)], fill=255)
    elif name == "diamond":
        draw.polygon([(half, 0), (size, half), (half, size), (0, half)], fill=255)
    else:
        angles = [math.pi * (step / 5 - 0.5) for step in range(10)]
        radii = [half if step % 2 == 0 else half * 0.42 for step in range(10)]
        points = zip(angles, radii, strict=True)
        draw.polygon([(half + r * math.cos(a), half + r * math.sin(a)) for a, r in points], fill=255)


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(ASSETS / "fonts" / f"{name}.ttf", size)


def _draw_sign(image: Image.Image, word: str, rng: Random) -> Sign:
    """Letters are set apart so far that each is the main content of at least one column of patches."""
    font = _font(rng.choice(FONTS), rng.randint(17, 22))
    spans = [max(LETTER_SPAN, font.getlength(letter)) for letter in word]
    margin, height = 4, int(font.size * 1.15)
    width = int(sum(spans)) + 2 * margin
    left, top = rng.randint(0, PICTURE - width), rng.randint(0, PICTURE - height)
    box = (left, top, left + width, top + height)
    board, ink = rng.choice(BOARDS)
    pen = ImageDraw.Draw(image)
    pen.rectangle((left, top, box[2] - 1, box[3] - 1), fill=board, outline=ink)
    edges = list(accumulate(spans, initial=left + margin))
    letters = tuple(pairwise(edges))
    for letter, (start, end) in zip(word, letters, strict=True):
        pen.text(((start + end) / 2, top + height / 2), letter, font=font, fill=ink, anchor="mm")
    return Sign(word, box, letters)
