"""LLaVA 1.5: a CLIP or SigLIP tower, an MLP projector, a decoder; every image is the same number of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quota.errors import QuotaError
from quota.models.family import Family

# Towers with a fixed number of patches, and how many class tokens stand before them.
_CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}


def llava(model: Any) -> Family:
    """The rooms of a `LlavaForConditionalGeneration`; QuotaError for a tower whose images vary in length."""
    base = model.model
    per_image = tokens_per_image(model)

    def image_index(input_ids: Tensor) -> Tensor:
        visual = input_ids == model.config.image_token_id
        if bool((visual.sum(dim=-1) % per_image).any()):
            raise QuotaError(
                f"the input holds a part of an image ({per_image} visual tokens each); pass whole prompts, "
                "without prefill_chunk_size"
            )
        return torch.where(visual, (visual.cumsum(dim=-1) - 1) // per_image, -1)

    return Family(
        model=model,
        base=base,
        tower=base.vision_tower,
        tower_blocks=base.vision_tower.encoder.layers,
        projector=base.multi_modal_projector,
        text_model=base.language_model,
        lm_head=model.lm_head,
        image_index=image_index,
    )


def tokens_per_image(model: Any) -> int:
    """Visual tokens of one image after the projector (V0 of equation 5)."""
    config = model.config
    tower = config.vision_config
    if tower.model_type not in _CLASS_TOKENS:
        known = ", ".join(_CLASS_TOKENS)
        raise QuotaError(f"LLaVA with a {tower.model_type} tower is not supported; supported towers: {known}")
    patches = (tower.image_size // tower.patch_size) ** 2 + _CLASS_TOKENS[tower.model_type]
    # "default" drops the first token of the tower's output, "full" keeps it.
    return patches - (config.vision_feature_select_strategy == "default")
