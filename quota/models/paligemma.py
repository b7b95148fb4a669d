"""PaliGemma: a SigLIP tower, one linear layer, a Gemma decoder; tokens of the prompt see one another (prefix-LM)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from quota.models.boxes import Boxes, grid
from quota.models.family import Family, refuse_softcap
from quota.models.images import by_count, visual_mask


def paligemma(model: Any) -> Family:
    """The rooms of a `PaliGemmaForConditionalGeneration`; QuotaError for PaliGemma 2, whose decoder caps its logits."""
    base, config = model.model, model.config
    refuse_softcap(config.text_config, "PaliGemma")
    side = config.vision_config.image_size // config.vision_config.patch_size

    def index_images(input_ids: Tensor, given: Mapping[str, Any]) -> Tensor:
        return by_count(visual_mask(input_ids, [config.image_token_id]), side**2)

    def layout(processor: Any, inputs: Mapping[str, Any], pictures: Sequence[Image.Image]) -> Boxes:
        return [box for number in range(len(pictures)) for box in grid(number, side, side)]

    return Family(
        model=model,
        tower_blocks=base.vision_tower.encoder.layers,
        projectors=(base.multi_modal_projector,),
        text_model=base.language_model,
        visual_tokens=(config.image_token_id,),
        index_images=index_images,
        layout=layout,
        blocks=_blocks,
    )


def _blocks(given: Mapping[str, Any], past: int) -> Tensor | None:
    """In the first pass all tokens of `token_type_ids` 0 are one block; later passes are causal."""
    types = given.get("token_type_ids")
    if types is None or (past and given.get("pixel_values") is None):
        return None
    length = past + given["input_ids"].shape[1]
    return pad(torch.where(types == 0, 0, -1), (0, length - types.shape[1]), value=-1)
