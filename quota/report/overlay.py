"""Which visual tokens were kept, drawn over the picture that the model saw.

Every visual token stands for one cell of a grid over the picture. Kept cells stay as they are, dropped cells fade
to grey under a white veil, so one sees at a glance what the next layers have left to look at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from quota.errors import QuotaError

_VEIL = 0.78
_EDGE = (214, 69, 65)


def seen_picture(processor: Any, pixel_values: torch.Tensor) -> Image.Image:
    """The picture after resizing and cropping, from `pixel_values` [3, H, W]: normalisation undone."""
    image_processor = processor.image_processor
    mean = torch.tensor(image_processor.image_mean).view(3, 1, 1)
    spread = torch.tensor(image_processor.image_std).view(3, 1, 1)
    pixels = (pixel_values.float().cpu() * spread + mean).clamp(0, 1) * 255
    return Image.fromarray(pixels.round().to(torch.uint8).permute(1, 2, 0).numpy(), "RGB")


def token_grid(model: Any, pixel_values: torch.Tensor, tokens: int) -> tuple[int, int]:
    """Rows and columns of the visual tokens over `pixel_values` [3, H, W], a token a patch in reading order.

    Raises QuotaError for a model whose visual tokens are not such a grid.
    """
    patch = getattr(model.config.vision_config, "patch_size", None)
    if patch:
        rows, columns = pixel_values.shape[-2] // patch, pixel_values.shape[-1] // patch
        if rows * columns == tokens:
            return rows, columns
    raise QuotaError(f"the {tokens} visual tokens of this model are not a grid of patches, so none can be drawn")


def overlay(picture: Image.Image, grid: tuple[int, int], kept: Sequence[int], size: int = 288) -> Image.Image:
    """The picture, its longer side about `size` pixels, with every cell not in `kept` faded.

    `grid` is (rows, columns); `kept` are token indices in reading order.
    """
    rows, columns = grid
    cell = max(2, size // max(rows, columns))
    shown = picture.convert("RGB").resize((columns * cell, rows * cell), Image.Resampling.LANCZOS)
    mask = np.zeros(rows * columns, dtype=bool)
    mask[list(kept)] = True
    mask = mask.reshape(rows, columns)
    pixels = np.asarray(shown, dtype=np.float32)
    faded = (1 - _VEIL) * pixels.mean(axis=2, keepdims=True) + _VEIL * 255
    full = np.kron(mask, np.ones((cell, cell), dtype=bool))[:, :, None]
    result = Image.fromarray(np.where(full, pixels, faded).astype(np.uint8), "RGB")
    _outline(result, mask, cell)
    return result


def _outline(image: Image.Image, mask: np.ndarray, cell: int) -> None:
    """A line along every border between a kept cell and a dropped one."""
    draw = ImageDraw.Draw(image)
    for row, column in np.argwhere(mask[:, 1:] != mask[:, :-1]):
        x, y = (column + 1) * cell, row * cell
        draw.line([(x, y), (x, y + cell)], fill=_EDGE, width=2)
    for row, column in np.argwhere(mask[1:] != mask[:-1]):
        x, y = column * cell, (row + 1) * cell
        draw.line([(x, y), (x + cell, y)], fill=_EDGE, width=2)
