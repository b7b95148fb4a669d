"""A tiny model of every class with its own processor, and samples to ask it about.

`make test-processors` runs all of it; `make test`, which has no torchvision, skips those whose processor needs it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.families import TINY
from support.families.own import OWN

from quota.models import FAMILIES
from quota.models.support import VIDEO
from quota.samples import Sample

FRAMES = 3


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture in which no two places are alike."""
    pixels = np.random.default_rng(seed).integers(90, 160, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels, "RGB")


SAMPLES = {
    "one picture": Sample(noise(500, 300), "w20 w21"),
    "two pictures": Sample((noise(500, 300), noise(200, 260, seed=1)), "w22 w23 w24"),
    VIDEO: Sample(tuple(noise(500, 300, seed) for seed in range(FRAMES)), "w25", video=True),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`name` runs over all classes, `name` and `case` over what each of them can be asked about."""
    if "case" in metafunc.fixturenames:
        cases = [
            (name, case)
            for name, support in FAMILIES.items()
            for case in SAMPLES
            if case != VIDEO or VIDEO in support.prompts
        ]
        metafunc.parametrize(("name", "case"), cases, scope="session")
    elif "name" in metafunc.fixturenames:
        metafunc.parametrize("name", list(OWN), scope="session")


@pytest.fixture(scope="session")
def own(name: str) -> Any:
    """The processor of the class."""
    try:
        return OWN[name]()
    except ImportError as error:
        pytest.skip(f"run by `make test-processors`: {str(error).strip().splitlines()[0]}")


@pytest.fixture(scope="session")
def model(name: str) -> Any:
    """A tiny random model of the class; not to be changed."""
    return TINY[name].build()
