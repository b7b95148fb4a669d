"""Pictures of the shown questions as data: URIs, and over each of them a veil for what every cut has dropped.

A veil is clear where tokens go on, so one picture serves all layers and the page shows the veil of the layer that its
slider stands at. All pictures are smaller where there are so many that the page would be too large otherwise.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from quota.models import Box
from quota.report.explain import Followed
from quota.report.overlay import veil

FRAMES = 8
"""Pictures or frames that are drawn of one question, spread evenly over all."""
MOST = 2_000_000
"""Characters that all pictures of a page may take together."""
_SIZES = (320, 240, 160, 96)
"""Longer sides in pixels, the first that fits into `MOST`."""


@dataclass(frozen=True)
class Stage:
    """What is left from one decoder layer on."""

    first: int
    """The first layer that sees no more than this."""
    kept: int
    """Tokens of this picture."""
    veil: str
    """To lay over it."""


@dataclass(frozen=True)
class Frame:
    """One picture of a question, or one frame of its video (one of two, where a token stands for both)."""

    name: str
    width: int
    height: int
    picture: str
    tokens: int
    stages: list[Stage]


@dataclass(frozen=True)
class Drawn:
    """The pictures of one question."""

    frames: list[Frame]
    of: int
    """How many there are, of which some may not be drawn."""


def draw(followed: Sequence[Followed]) -> list[Drawn]:
    """Draw the pictures of several questions, as large as they may be together."""
    drawn: list[Drawn] = []
    for size in _SIZES:
        drawn = [_draw(one, size) for one in followed]
        if sum(_characters(frame) for one in drawn for frame in one.frames) <= MOST:
            break
    return drawn


def _draw(followed: Followed, size: int) -> Drawn:
    standing = list(followed.standing().items())
    chosen = standing
    if len(standing) > FRAMES:
        # The first and the last are among them.
        chosen = [standing[round(place * (len(standing) - 1) / (FRAMES - 1))] for place in range(FRAMES)]
    return Drawn([_frame(name, *own, followed.kept, size) for name, own in chosen], len(standing))


def _frame(name: str, picture: Image.Image, boxes: dict[int, Box], kept: dict[int, list[int]], size: int) -> Frame:
    scale = size / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    small = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    stages = []
    for layer, indices in sorted(kept.items()):
        own = [boxes[index] for index in indices if index in boxes]
        over = veil(list(boxes.values()), own, width, height)
        stages.append(Stage(layer + 1, len(own), _uri(over, lossless=True)))
    return Frame(name, width, height, _uri(small, quality=82), len(boxes), stages)


def _uri(picture: Image.Image, **options: object) -> str:
    data = io.BytesIO()
    picture.save(data, format="WEBP", method=4, **options)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


def _characters(frame: Frame) -> int:
    return len(frame.picture) + sum(len(stage.veil) for stage in frame.stages)
