"""The sprite sheet: one 64 x 64 picture for every emoji name, in the order of `words.EMOJI`.

The sheet ships with the package (`assets/sprites.png`), so pictures need nothing downloaded. It was cut from
the 3D art of Fluent Emoji (MIT, Microsoft), npm package `@lobehub/fluent-emoji-3d` 1.1.0, by

    python -m quota_lab.reference.sprites UNPACKED_PACKAGE/assets
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

from PIL import Image

from quota_lab.reference.words import EMOJI

SIZE = 64
COLUMNS = 8
ASSETS = Path(__file__).parent / "assets"


@cache
def sprites() -> dict[str, Image.Image]:
    """Name -> RGBA picture of 64 x 64 pixels."""
    with Image.open(ASSETS / "sprites.png") as sheet:
        sheet = sheet.convert("RGBA")
    return {name: sheet.crop(_box(index)) for index, name in enumerate(EMOJI)}


def _box(index: int) -> tuple[int, int, int, int]:
    row, column = divmod(index, COLUMNS)
    return column * SIZE, row * SIZE, (column + 1) * SIZE, (row + 1) * SIZE


def build_sheet(folder: Path) -> Image.Image:
    """Cut the sheet from a folder of `CODEPOINT.webp` pictures."""
    sheet = Image.new("RGBA", (COLUMNS * SIZE, -(-len(EMOJI) // COLUMNS) * SIZE))
    for index, code in enumerate(EMOJI.values()):
        with Image.open(folder / f"{code}.webp") as picture:
            picture = picture.convert("RGBA")
        tight = picture.crop(picture.getchannel("A").getbbox())
        tight.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
        left, top, *_ = _box(index)
        sheet.paste(tight, (left + (SIZE - tight.width) // 2, top + (SIZE - tight.height) // 2))
    return sheet


if __name__ == "__main__":
    build_sheet(Path(sys.argv[1])).save(ASSETS / "sprites.png", optimize=True)
