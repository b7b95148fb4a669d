"""A veil is clear exactly where tokens go on, and pictures are as small as they have to be."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from quota import ops
from quota.models.boxes import grid
from quota.report.explain import Followed
from quota.report.page import pictures
from quota.report.page.pictures import FRAMES, draw


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def followed(count: int = 1, side: int = 4, video: bool = False) -> Followed:
    """So many noisy pictures, of whose `side` x `side` tokens each the first row goes on from layer 1."""
    noise = np.random.default_rng(0).integers(0, 255, (60, 100, 3), dtype=np.uint8)
    boxes = [box for picture in range(count) for box in grid(picture, side, side)]
    kept = [index for index in range(len(boxes)) if index % side**2 < side]
    tokens = [len(boxes)] * 2 + [len(kept)] * 2
    return Followed("yes", {1: kept}, boxes, tokens, [Image.fromarray(noise)] * count, ops.Usage(), video)


def test_a_veil_hides_what_was_dropped() -> None:
    [one] = draw([followed()])
    [frame] = one.frames
    assert (frame.name, frame.tokens, frame.width, frame.height) == ("picture 1", 16, 320, 192)
    [stage] = frame.stages
    assert (stage.first, stage.kept) == (2, 4)
    alpha = np.asarray(opened(stage.veil).convert("RGBA"))[:, :, 3]
    assert (alpha[:47] == 0).all() and (alpha[50:] > 180).all()
    assert opened(frame.picture).size == (320, 192)


def test_of_a_long_video_some_frames_are_drawn() -> None:
    [one] = draw([followed(30, video=True)])
    assert (len(one.frames), one.of) == (FRAMES, 30)
    assert (one.frames[0].name, one.frames[-1].name) == ("frame 1", "frame 30")


def test_many_pictures_are_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    large = draw([followed(4)])
    monkeypatch.setattr(pictures, "MOST", 60_000)
    small = draw([followed(4)])
    assert small[0].frames[0].width < large[0].frames[0].width
    assert sum(len(frame.picture) for frame in small[0].frames) < 60_000


def test_twelve_questions_with_the_noisiest_videos_stay_small() -> None:
    drawn = draw([followed(FRAMES, side=24, video=True)] * 12)
    size = sum(len(frame.picture) + len(frame.stages[0].veil) for one in drawn for frame in one.frames)
    assert size < 2_500_000
