"""InternVL 3 in transformers' own format: tiles of one size, a word before and behind every picture and frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from quota.models.family import Family
from quota.models.images import by_runs


def internvl(model: Any) -> Family:
    """The rooms of an `InternVLForConditionalGeneration`. All tiles of a picture are one image."""
    base, token = model.model, model.config.image_token_id

    def index_images(input_ids: Tensor, given: Mapping[str, Any]) -> Tensor:
        return by_runs(input_ids, [token])

    return Family(
        model=model,
        base=base,
        tower=base.vision_tower,
        tower_blocks=base.vision_tower.encoder.layer,
        projectors=(base.multi_modal_projector,),
        text_model=base.language_model,
        lm_head=model.lm_head,
        visual_tokens=(token,),
        index_images=index_images,
    )
