"""What photographs lie on: gradients, stripes, checks, dots and clouds in muted colours, with grain."""

from __future__ import annotations

from random import Random

import numpy as np
from PIL import Image


def background(size: int, rng: Random) -> Image.Image:
    """An RGB picture of `size` x `size` pixels."""
    one, other = (np.array([rng.uniform(70, 200) for _ in range(3)]) for _ in range(2))
    one, other = (0.5 * colour + 0.5 * colour.mean() for colour in (one, other))
    mix = rng.choice((_gradient, _stripes, _checks, _dots, _clouds))(size, rng)[..., None]
    grain = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(1, 8), (size, size, 1))
    return Image.fromarray(np.clip(one * mix + other * (1 - mix) + grain, 0, 255).astype(np.uint8))


def _along(size: int, rng: Random) -> np.ndarray:
    """Distance along a random direction, in pixels [size, size]."""
    angle, place = rng.uniform(0, 2 * np.pi), np.arange(size)
    return place[:, None] * np.sin(angle) + place[None] * np.cos(angle)


def _gradient(size: int, rng: Random) -> np.ndarray:
    along = _along(size, rng)
    return (along - along.min()) / np.ptp(along)


def _stripes(size: int, rng: Random) -> np.ndarray:
    return 0.5 + 0.35 * np.sin(_along(size, rng) * 2 * np.pi / rng.uniform(10, 60))


def _checks(size: int, rng: Random) -> np.ndarray:
    side, place = rng.randint(8, 40), np.arange(size)
    return 0.3 + 0.4 * (((place[:, None] // side) + (place[None] // side)) % 2)


def _dots(size: int, rng: Random) -> np.ndarray:
    step, place = rng.uniform(12, 40), np.arange(size)
    near = (place % step - step / 2) ** 2
    return 0.3 + 0.4 * (near[:, None] + near[None] < (step * 0.3) ** 2)


def _clouds(size: int, rng: Random) -> np.ndarray:
    coarse = np.random.default_rng(rng.getrandbits(32)).integers(0, 255, (7, 7), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)) / 255
