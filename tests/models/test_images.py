"""Three ways to tell images apart, and the frames of a video by their positions."""

from __future__ import annotations

import pytest
import torch
from support.families import TINY
from torch import Tensor
from transformers import Gemma2Config, PaliGemmaConfig, PaliGemmaForConditionalGeneration

from quota.errors import QuotaError
from quota.models import family
from quota.models.images import by_count, by_lengths, by_runs, split_frames, visual_mask

IMAGE, VIDEO = 3, 4


def rows(*texts: str) -> Tensor:
    """Letters to ids: i is an image token, v one of a video, anything else a word."""
    return torch.tensor([[{"i": IMAGE, "v": VIDEO}.get(letter, 9) for letter in text] for text in texts])


def shown(images: Tensor) -> list[str]:
    return ["".join("." if image < 0 else str(image) for image in row) for row in images.tolist()]


def test_by_count() -> None:
    ids = rows("iiii.ii", "..ii...")
    assert shown(by_count(visual_mask(ids, [IMAGE]), 2)) == ["0011.22", "..00..."]
    with pytest.raises(QuotaError, match="part of an image"):
        by_count(visual_mask(rows("iii"), [IMAGE]), 2)


def test_by_runs() -> None:
    assert shown(by_runs(rows("ii.ivv.v", "........"), [IMAGE, VIDEO])) == ["00.122.3", "........"]


def test_by_lengths() -> None:
    ids = rows("iiii.vvv", "..i..vvi")
    lengths = {IMAGE: [3, 1, 1, 1], VIDEO: [1, 2, 2]}
    assert shown(by_lengths(ids, lengths)) == ["0001.233", "..0..112"]
    assert shown(by_lengths(rows("..", ".."), {IMAGE: [], VIDEO: []})) == ["..", ".."]
    with pytest.raises(QuotaError, match=r"6 visual tokens.*5"):
        by_lengths(ids, {IMAGE: [3, 1, 1]})


@pytest.mark.parametrize(("height", "width"), [(2, 3), (1, 3), (3, 1), (1, 1)])
def test_frames(height: int, width: int) -> None:
    frames = 3
    time, row, column = torch.meshgrid(*map(torch.arange, (frames, height, width)), indexing="ij")
    # Two words before, one behind; all frames at one moment, as with many a second.
    grid = torch.stack([time * 0, row, column]).flatten(1) + 2
    after = torch.full((3, 1), int(grid.max()) + 1)
    positions = torch.cat([torch.tensor([[0, 1]] * 3), grid, after], dim=1)[:, None]
    images = by_runs(rows(".." + "v" * grid.shape[1] + "."), [VIDEO])
    each = height * width
    assert shown(split_frames(images, positions)) == [".." + "0" * each + "1" * each + "2" * each + "."]
    assert split_frames(images, None) is images


def test_paligemma_2_is_refused() -> None:
    config = TINY["PaliGemmaForConditionalGeneration"].config()
    text = Gemma2Config(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=96)
    changed = PaliGemmaConfig(
        vision_config=config.vision_config, text_config=text, image_token_index=IMAGE, projection_dim=64
    )
    with pytest.raises(QuotaError, match=r"PaliGemma with a gemma2 decoder"):
        family(PaliGemmaForConditionalGeneration(changed))
