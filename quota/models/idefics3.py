"""Idefics 3 and SmolVLM: a SigLIP tower, pixel shuffle; words that name row and column stand before every tile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from quota.models.family import Family
from quota.models.images import by_runs


def idefics3(model: Any) -> Family:
    """The rooms of an `Idefics3ForConditionalGeneration` or `SmolVLMForConditionalGeneration`.

    Every tile of a picture is an image of its own, and so is every frame of a video (SmolVLM).
    """
    base, token = model.model, model.config.image_token_id

    def index_images(input_ids: Tensor, given: Mapping[str, Any]) -> Tensor:
        return by_runs(input_ids, [token])

    return Family(
        model=model,
        base=base,
        tower=base.vision_model,
        tower_blocks=base.vision_model.encoder.layers,
        projectors=(base.connector,),
        text_model=base.text_model,
        lm_head=model.lm_head,
        visual_tokens=(token,),
        index_images=index_images,
    )
