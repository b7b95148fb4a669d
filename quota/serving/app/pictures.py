"""Pictures on their way to the page and back: checked when they come, drawn as what each cut has kept.

Whatever a browser sends is read by `quota.samples`, as every other picture is: seven formats, decoded by Pillow itself,
with a limit that is looked at before anything is decoded. The page never shows the file that came, but what the model
sees of it, drawn anew: an SVG runs nowhere, and a picture of a billion pixels stays in its file.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from quota.errors import QuotaError
from quota.models import Boxes
from quota.report.explain import draw_panels
from quota.samples import FORMATS, picture_in
from quota.serving.requests import LARGEST_PICTURE

LARGEST_FILE = 24_000_000
"""Bytes: what `quota serve` takes in one request, before base64."""
PREVIEW, PANEL = 1024, 320
"""Longer sides, in pixels."""


@dataclass(frozen=True)
class Picture:
    """A picture that can be asked about."""

    file: bytes
    """As it came: many people may have one each, and pixels would take ten times as much."""
    animated: bool = False
    """Whether there are more in the file: the first is asked about."""

    def pixels(self) -> Image.Image:
        """In RGB, as `quota run` sees it."""
        return picture_in(self.file, "of yours", LARGEST_PICTURE)

    def preview(self) -> Image.Image:
        """For the page."""
        small = self.pixels()
        small.thumbnail((PREVIEW, PREVIEW))
        return small


def read_picture(file: Path) -> Picture:
    """The picture in a file that somebody has sent. QuotaError, which does not name the file, for anything else."""
    try:
        size = file.stat().st_size
        data = file.read_bytes() if size <= LARGEST_FILE else b""
    except OSError:
        raise QuotaError("the file is not there any more; choose it again") from None
    if not size:
        raise QuotaError("the file is empty; choose a picture")
    if size > LARGEST_FILE:
        raise QuotaError(f"the file has {size:,} bytes, at most {LARGEST_FILE:,} are read; make the picture smaller")
    picture = Picture(data)
    try:
        picture.pixels()
    except QuotaError as error:
        # Pillow names what it read by its address in memory.
        if "cannot identify" not in str(error):
            raise
        raise QuotaError(f"this is no picture that is read here ({', '.join(FORMATS)}); choose another") from None
    with Image.open(io.BytesIO(picture.file), formats=FORMATS) as opened:
        return Picture(picture.file, getattr(opened, "is_animated", False))


def drawn(picture: Image.Image, boxes: Boxes, kept: Mapping[int, Sequence[int]]) -> list[tuple[str, str]]:
    """Captions and addresses of the picture as all tokens show it, then as each candidate layer kept it."""
    panels = draw_panels([picture], boxes, {layer: list(tokens) for layer, tokens in kept.items()}, PANEL)
    return [(caption, address(panel)) for row in panels.values() for caption, panel in row]


def address(picture: Image.Image) -> str:
    """The picture inside an address (data:), so that no file is left behind."""
    data = io.BytesIO()
    picture.save(data, "WEBP", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"
