"""Pruned tiny models, prompts for them, and the naive decoder to hold them against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from quota.models import fingerprint
from quota.pruning.pruner import Pruner
from quota.pruning.recipe import PruningRecipe
from support.naive import Outcome, Row, naive
from support.tiny import IMAGE, PAD, TOKENS_PER_IMAGE, tiny_llava, tiny_prompt

NEW = 5
PROMPTS = {
    "one sample": [tiny_prompt(1, 5, seed=1)],
    "left padding": [tiny_prompt(1, 3, seed=2), tiny_prompt(1, 11, seed=3)],
    "two images and one": [tiny_prompt(2, 5, seed=4), tiny_prompt(1, 9, seed=5)],
    "three images and none": [tiny_prompt(3, 4, seed=6), tiny_prompt(0, 6, seed=7)],
}
Batch = list[tuple[Tensor, Tensor]]

prompts = pytest.mark.parametrize("batch", PROMPTS.values(), ids=PROMPTS.keys())
implementations = pytest.mark.parametrize("implementation", ["sdpa", "eager"])


def recipe_for(model: LlavaForConditionalGeneration, **changes: object) -> PruningRecipe:
    fields = {
        "layers": (1, 2, 3),
        "keep_ratios": (0.8, 0.5, 0.3),
        "keep": 0.3,
        "reference_tokens": TOKENS_PER_IMAGE,
        "model_fingerprint": fingerprint(model),
    }
    return PruningRecipe(**fields | changes)


def pruned(implementation: str = "sdpa", **changes: object) -> LlavaForConditionalGeneration:
    model = tiny_llava(implementation)
    Pruner(model, recipe_for(model, **changes)).attach()
    return model


def generate(model: LlavaForConditionalGeneration, batch: dict[str, Tensor], **options: object):
    return model.generate(
        **batch,
        max_new_tokens=NEW,
        do_sample=False,
        suppress_tokens=[IMAGE, PAD],
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )


def plain(model: LlavaForConditionalGeneration, recipe: PruningRecipe | None = None) -> Callable[..., Outcome]:
    """The naive decoder of this model under its Pruner's recipe, which its modules do not notice."""

    def decode(ids: Tensor, pixels: Tensor, passes: list[int], **options: Any) -> Outcome:
        return naive(model, recipe or model.quota_pruner.recipe, llava_row(model, ids, pixels), passes, **options)

    return decode


@torch.no_grad()
def llava_row(model: LlavaForConditionalGeneration, ids: Tensor, pixels: Tensor) -> Row:
    """What enters the decoder for the words `ids` [L] and their pictures."""
    decoder = model.model.language_model
    hidden = decoder.embed_tokens(ids)
    visual = ids == model.config.image_token_id
    if len(pixels):
        hidden[visual] = torch.cat(model.model.get_image_features(pixel_values=pixels).pooler_output)
    images = torch.where(visual, (visual.cumsum(0) - 1) // TOKENS_PER_IMAGE, -1)
    cos, sin = decoder.rotary_emb(hidden[None], torch.arange(len(ids))[None])
    return Row(hidden, images, [(cos[0], sin[0])] * len(decoder.layers))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def kept_of(row: Tensor) -> list[int]:
    return [number for number in row.tolist() if number >= 0]
