"""Photographs of kinds of things, from a folder FOLDER/KIND/*.jpg."""

from __future__ import annotations

from pathlib import Path
from random import Random

from PIL import Image, ImageEnhance

from quota.errors import QuotaError
from quota_lab.testbeds.vlm.words import KINDS

DEVELOPMENT = 10
"""Every tenth photograph of a training folder is kept for development: nothing is trained on it."""


class Photos:
    """Files by kind. `part` of a folder: "all", or of every ten "train" (nine) or "development" (one)."""

    def __init__(self, folder: Path, part: str = "all") -> None:
        self.freely = part == "train"
        self.files: dict[str, list[Path]] = {}
        for kind, folders in KINDS.items():
            found = sorted(file for name in folders for file in (folder / name).glob("*.jpg"))
            chosen = [file for number, file in enumerate(found) if part == "all" or _part(number) == part]
            if not chosen:
                raise QuotaError(f"{folder} holds too few photographs of {kind}; expected {folders[0]}/*.jpg in it")
            self.files[kind] = chosen

    def pick(self, kind: str, rng: Random) -> Image.Image:
        """A photograph of `kind`, cropped a little and at times mirrored; for training cropped and coloured freely."""
        file = rng.choice(self.files[kind])
        try:
            with Image.open(file) as opened:
                image = opened.convert("RGB")
        except OSError as error:
            raise QuotaError(f"cannot read the image {file}: {error}") from error
        side = round(min(image.size) * rng.uniform(0.6 if self.freely else 0.85, 1))
        left, top = (rng.randint(0, length - side) for length in image.size)
        image = image.crop((left, top, left + side, top + side))
        if self.freely:
            for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                image = change(image).enhance(rng.uniform(0.75, 1.25))
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def _part(number: int) -> str:
    return "development" if number % DEVELOPMENT == 0 else "train"
