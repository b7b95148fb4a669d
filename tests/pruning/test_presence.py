"""Which tokens of a pass are present, and what they are called."""

from __future__ import annotations

import pytest
import torch
from support.tiny import IMAGE, TOKENS_PER_IMAGE, tiny_batch, tiny_llava, tiny_prompt
from torch import Tensor

from quota.errors import QuotaError
from quota.models import family
from quota.ops.choice import Cut
from quota.pruning.presence import Presence, images_of

TWO, ONE = tiny_prompt(2, 5, seed=4), tiny_prompt(1, 9, seed=5)


def made(batch: dict[str, Tensor]) -> Presence:
    parts = family(tiny_llava())
    return Presence.of(parts, batch, images_of(parts, batch), None)


def test_is_made_of_what_the_base_model_was_given() -> None:
    batch = tiny_batch([TWO, ONE])
    presence = made(batch)
    visual = batch["input_ids"] == IMAGE
    assert torch.equal(presence.visual, visual)
    assert torch.equal(presence.text, batch["attention_mask"].bool() & ~visual)
    assert presence.sizes == [[TOKENS_PER_IMAGE] * 2, [TOKENS_PER_IMAGE, 0]]
    assert presence.whole and presence.has_images


@pytest.mark.parametrize("pixels", [{}, {"pixel_values": None}, {"pixel_values": []}], ids=["none", "None", "empty"])
def test_an_image_token_without_images_is_a_word(pixels: dict[str, object]) -> None:
    batch = tiny_batch([ONE])
    del batch["pixel_values"]
    assert not made(batch | pixels).has_images


def test_numbers_are_those_within_the_sample_before_and_behind_a_cut() -> None:
    presence = made(tiny_batch([TWO, ONE]))
    whole = [list(range(2 * TOKENS_PER_IMAGE)), list(range(TOKENS_PER_IMAGE))]
    assert [row[there].tolist() for row, there in zip(presence.numbers, presence.visual, strict=True)] == whole
    # Every third token of the first sample, every fifth of the second.
    steps = torch.tensor([[3], [5]])
    hidden = torch.zeros(*presence.images.shape, 4)
    presence.cut(1, Cut.of(presence.text | (presence.visual & (presence.numbers % steps == 0))), hidden, None)
    left = [row[::step] for row, step in zip(whole, (3, 5), strict=True)]
    assert [row[there].tolist() for row, there in zip(presence.numbers, presence.visual, strict=True)] == left


def test_a_mask_that_does_not_fit_is_refused() -> None:
    batch = tiny_batch([ONE])
    with pytest.raises(QuotaError, match="attention_mask"):
        made(batch | {"attention_mask": batch["attention_mask"][:, 1:]})
