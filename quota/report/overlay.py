"""Which visual tokens were kept, drawn over the picture as the user gave it.

Every visual token stands for a box of the picture. Where tokens are kept the picture stays as it is, where they were
dropped it fades to grey under a white veil: one sees at a glance what the next layers have left to look at. Where they
lie over each other (a look at the whole, and enlarged tiles) a place fades by the share of them that is gone, and what
no token ever saw, as what a processor crops, is faded from the start.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from quota.models.boxes import Box

_VEIL = 0.78
_EDGE = (214, 69, 65)


def overlay(picture: Image.Image, boxes: Sequence[Box], kept: Sequence[Box], size: int = 288) -> Image.Image:
    """The picture, its longer side `size` pixels, faded where none of its `boxes` is in `kept`."""
    scale = size / max(picture.size)
    width, height = (max(1, round(length * scale)) for length in picture.size)
    pixels = np.asarray(picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), dtype=np.float32)
    share = _share(boxes, kept, width, height)
    faded = (1 - _VEIL) * pixels.mean(axis=2, keepdims=True) + _VEIL * 255
    drawn = faded + share[:, :, None] * (pixels - faded)
    drawn[_borders(share > 0)] = _EDGE
    return Image.fromarray(drawn.round().astype(np.uint8), "RGB")


def veil(boxes: Sequence[Box], kept: Sequence[Box], width: int, height: int) -> Image.Image:
    """What to lay over a picture of `width` x `height` for the same: RGBA, clear where tokens are kept."""
    share = _share(boxes, kept, width, height)
    drawn = np.full((height, width, 4), 255, dtype=np.uint8)
    drawn[:, :, 3] = (255 * _VEIL * (1 - share)).round()
    drawn[_borders(share > 0)] = (*_EDGE, 255)
    return Image.fromarray(drawn, "RGBA")


def _share(boxes: Sequence[Box], kept: Sequence[Box], width: int, height: int) -> np.ndarray:
    """Which share of the boxes over each pixel is in `kept`: [height, width]; 0 where no token looks."""
    return _cover(kept, width, height) / np.maximum(_cover(boxes, width, height), 1)


def _cover(boxes: Sequence[Box], width: int, height: int) -> np.ndarray:
    """How many boxes lie over each pixel: [height, width]."""
    count = np.zeros((height, width), dtype=np.float32)
    for box in boxes:
        left, right = round(box.left * width), round(box.right * width)
        top, bottom = round(box.top * height), round(box.bottom * height)
        count[top:bottom, left:right] += 1
    return count


def _borders(mask: np.ndarray) -> np.ndarray:
    """The pixels at either side of a border between kept and dropped."""
    edge = np.zeros_like(mask)
    across, down = mask[:, 1:] != mask[:, :-1], mask[1:] != mask[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge
