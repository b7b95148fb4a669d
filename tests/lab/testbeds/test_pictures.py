"""Photographs as crops."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from quota.errors import QuotaError
from quota_lab.testbeds.pictures import draw_crops, photographs


def save(folder: Path, name: str, size: tuple[int, int], colour: tuple[int, int, int] = (255, 255, 255)) -> Path:
    Image.new("RGB", size, colour).save(folder / name)
    return folder / name


def test_the_halves_share_no_picture(tmp_path: Path) -> None:
    for name in ("c.png", "a.JPG", "b.png"):
        save(tmp_path, name, (9, 9))
    (tmp_path / "notes.txt").write_text("no picture")
    known, unknown = photographs(tmp_path)
    assert [file.name for file in known] == ["a.JPG", "c.png"] and [file.name for file in unknown] == ["b.png"]


@pytest.mark.parametrize("pictures", [0, 1])
def test_too_few_pictures(pictures: int, tmp_path: Path) -> None:
    for number in range(pictures):
        save(tmp_path, f"{number}.png", (9, 9))
    with pytest.raises(QuotaError, match=f"holds {pictures} pictures"):
        photographs(tmp_path)
    with pytest.raises(QuotaError, match="absent"):
        photographs(tmp_path / "absent")


def test_crops_take_the_pictures_in_turn_and_follow_the_seed(tmp_path: Path) -> None:
    white, black = save(tmp_path, "w.png", (40, 20)), save(tmp_path, "b.png", (20, 40), (0, 0, 0))
    crops = draw_crops([white, black], 3, 8, seed=0)
    assert crops.shape == (3, 3, 8, 8)
    assert torch.equal(crops[0], crops[2]) and (crops[0] > 2).all() and (crops[1] < -1).all()
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    noise.save(tmp_path / "n.png")
    drawn = [draw_crops([tmp_path / "n.png"], 2, 8, seed) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
