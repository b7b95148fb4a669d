"""What a picture of the suite loses on its way to the model: resolution and grain.

Pictures as they are drawn are too easy for the trained model: hardly any rounding makes it err. The levels were chosen
on photographs that training does not see, for nearest rounding to cost what it costs real models.
"""

from __future__ import annotations

from random import Random

import numpy as np
from PIL import Image

SHARPNESS = (0.45, 0.7)
"""Pixels a side that are left, relative to those before."""
GRAIN = (15.0, 35.0)
"""Standard deviation of the noise of each channel, in levels of 256."""


def take(image: Image.Image, rng: Random) -> Image.Image:
    """`image` as a cheap camera takes it, by a resolution and a grain that `rng` draws."""
    width, height = image.size
    left, linear = rng.uniform(*SHARPNESS), Image.Resampling.BILINEAR
    blurred = image.resize((round(width * left), round(height * left)), linear).resize(image.size, linear)
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(*GRAIN), (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(blurred) + noise, 0, 255).astype(np.uint8))
