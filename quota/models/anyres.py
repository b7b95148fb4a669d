"""The tokens of LLaVA-NeXT and LLaVA-OneVision in a picture: a small copy of the whole, then tiles of a canvas.

The picture is scaled to fit the canvas of tiles that suits it best and lies in its middle. Rows or columns of tokens
that hold padding alone are left out, and a newline ends every row. OneVision scales what is left down where it is more
than so many tiles' worth.
"""

from __future__ import annotations

import math
from typing import Any

from PIL import Image
from torch import empty
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from quota.models.boxes import Boxes, grid, middle


def anyres(picture: int, image: Image.Image, config: Any, most: int | None = None) -> Boxes:
    """Boxes of a picture that is cut into tiles; `most` is how many tiles' worth of tokens it may have."""
    width, height = image.size
    pixels = config.vision_config.image_size
    side = pixels // config.vision_config.patch_size
    down, across = get_anyres_image_grid_shape((height, width), config.image_grid_pinpoints, pixels)
    rows, columns = unpad_image(empty(1, down * side, across * side), (height, width)).shape[1:]
    scale = min(across * pixels / width, down * pixels / height)
    token = pixels / side / scale
    view = middle(columns * token / width, rows * token / height)
    ratio = 0.0 if most is None else math.sqrt(rows * columns / (most * side**2))
    if ratio > 1.1:
        rows, columns = int(rows // ratio), int(columns // ratio)
    fine = grid(picture, rows, columns, view, level=1)
    lines = (fine[start : start + columns] for start in range(0, rows * columns, columns))
    return [*grid(picture, side, side), *(box for line in lines for box in [*line, None])]
