"""Photographs as square crops: what a vision tower is calibrated on and measured with."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from quota.errors import QuotaError
from quota.samples import Sample

_ENDINGS = {".jpg", ".jpeg", ".png", ".webp"}
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours, as towers expect."""


def photographs(folder: Path) -> tuple[list[Path], list[Path]]:
    """The pictures of a folder in two halves, every second one, in the order of their names.

    The first half is for calibration and the other for measuring. QuotaError for fewer than two pictures.
    """
    try:
        found = sorted(file for file in folder.iterdir() if file.suffix.lower() in _ENDINGS)
    except OSError as error:
        raise QuotaError(f"cannot read {folder}: {error.strerror}; give a folder of photographs") from error
    if len(found) < 2:
        raise QuotaError(f"{folder} holds {len(found)} pictures; calibrating and measuring take one each at least")
    return found[::2], found[1::2]


def draw_crops(files: Sequence[Path], count: int, size: int, seed: int) -> Tensor:
    """`count` crops of `size` pixels a side, normalised, from the pictures in turn: [count, 3, size, size].

    A crop is a square of a random place and of a third to the whole of the shorter side, scaled down.
    """
    chance = random.Random(seed)
    pictures = [picture for file in files for picture in Sample(file, "").pictures()]
    return torch.stack([_crop(pictures[number % len(pictures)], size, chance) for number in range(count)])


def _crop(picture: Image.Image, size: int, chance: random.Random) -> Tensor:
    side = round(min(picture.size) * chance.uniform(1 / 3, 1))
    left, top = (chance.randint(0, length - side) for length in picture.size)
    square = picture.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    pixels = torch.from_numpy(np.asarray(square, dtype=np.float32) / 255)
    return ((pixels - torch.tensor(_MEAN)) / torch.tensor(_DEVIATION)).permute(2, 0, 1)
