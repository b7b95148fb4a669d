"""Backgrounds of the reference pictures: eight places, drawn from a few jittered primitives."""

from __future__ import annotations

from random import Random

from PIL import Image, ImageDraw

Color = tuple[int, int, int]


def background(scene: str, size: int, rng: Random) -> Image.Image:
    """An RGB picture of `size` x `size` pixels showing `scene` (one of `words.SCENES`)."""
    image = Image.new("RGB", (size, size))
    _PAINTERS[scene](ImageDraw.Draw(image), size, rng)
    return image


def _jitter(color: Color, rng: Random, amount: int = 14) -> Color:
    red, green, blue = (max(0, min(255, part + rng.randint(-amount, amount))) for part in color)
    return red, green, blue


def _bands(draw: ImageDraw.ImageDraw, size: int, rng: Random, *bands: tuple[float, Color]) -> None:
    """Paint horizontal bands; each is (where it begins as a fraction of the height, colour)."""
    for start, color in bands:
        top = int(size * (start + rng.uniform(-0.06, 0.06))) if start else 0
        draw.rectangle((0, top, size, size), fill=_jitter(color, rng))


def _beach(draw: ImageDraw.ImageDraw, size: int, rng: Random) -> None:
    _bands(draw, size, rng, (0, (150, 210, 245)), (0.35, (50, 140, 200)), (0.55, (236, 212, 150)))


def _sea(draw: ImageDraw.ImageDraw, size: int, rng: Random) -> None:
    _bands(draw, size, rng, (0, (24, 92, 160)))
    for row in range(rng.randint(4, 10), size, 14):
        shift = rng.randint(0, 24)
        for left in range(-shift, size, 24):
            draw.arc((left, row, left + 24, row + 10), 20, 160, fill=(96, 168, 220), width=2)


def _desert(draw: ImageDraw.ImageDraw, size: int, rng: Random) -> None:
    _bands(draw, size, rng, (0, (250, 190, 130)), (0.5, (214, 150, 80)))
    for _ in range(3):
        x, y = rng.randint(-20, size), rng.randint(size * 2 // 5, size)
        draw.ellipse((x - 50, y, x + 70, y + 60), fill=_jitter((206, 140, 70), rng))


def _forest(draw: ImageDraw.ImageDraw, size: int, rng: Random) -> None:
    _bands(draw, size, rng, (0, (160, 200, 170)), (0.6, (70, 110, 50)))
    for x in range(rng.randint(-10, 0), size, 26):
        y, height = rng.randint(size // 3, size * 2 // 3), rng.randint(36, 60)
        draw.rectangle((x + 8, y, x + 12, y + 16), fill=(84, 56, 30))
        draw.polygon([(x - 4, y), (x + 24, y), (x + 10, y - height)], fill=_jitter((24, 84, 40), rng))


def _city(draw: ImageDraw.ImageDraw, size: int, rng: Random) -> None:
    _bands(draw, size, rng, (0, (190, 200, 212)), (0.85, (92, 92, 96)))
    for x in range(rng.randint(-12, 0), size, 30):
        top, wall = rng.randint(16, size // 2), _jitter((116, 116, 130), rng)
        draw.rectangle((x, top, x + 25, int(size * 0.85)), fill=wall)
        for row in range(top + 5, int(size * 0.8), 10):
            for column in (x + 4, x + 15):
                draw.rectangle((column, row, column + 5, row + 4), fill=(236, 224, 150))


def _mountain(draw: ImageDraw.ImageDraw, size: int, rng: Random) -> None:
    _bands(draw, size, rng, (0, (180, 214, 244)), (0.75, (110, 150, 90)))
    for x in range(rng.randint(-40, -10), size, 50):
        peak, base, middle = rng.randint(14, 50), int(size * 0.78), x + 40
        rock = _jitter((120, 116, 124), rng)
        draw.polygon([(x - 10, base), (x + 90, base), (middle, peak)], fill=rock)
        draw.polygon([(middle - 12, peak + 18), (middle + 12, peak + 18), (middle, peak)], fill=(246, 248, 252))


def _space(draw: ImageDraw.ImageDraw, size: int, rng: Random) -> None:
    _bands(draw, size, rng, (0, (18, 14, 40)))
    for _ in range(60):
        x, y, radius = rng.randint(0, size), rng.randint(0, size), rng.choice((0, 0, 1))
        draw.ellipse((x, y, x + radius, y + radius), fill=(250, 248, 220))


def _room(draw: ImageDraw.ImageDraw, size: int, rng: Random) -> None:
    _bands(draw, size, rng, (0, (226, 206, 184)), (0.7, (150, 104, 66)))
    for x in range(rng.randint(2, 14), size, 18):
        draw.line((x, 0, x, int(size * 0.64)), fill=(206, 184, 160), width=2)


_PAINTERS = {
    "beach": _beach, "forest": _forest, "desert": _desert, "city": _city,
    "mountain": _mountain, "sea": _sea, "space": _space, "room": _room,
}  # fmt: skip
