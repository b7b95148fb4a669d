"""Gemma 3: images whose tokens see one another, most decoder layers with a sliding window, each kind with its RoPE.

The projector is a parameter, not a linear layer: it stays in 16 bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from quota.errors import QuotaError
from quota.models.boxes import Boxes, grid
from quota.models.family import Family, refuse_softcap
from quota.models.images import by_runs


def gemma3(model: Any) -> Family:
    """The rooms of a `Gemma3ForConditionalGeneration`. Every crop of a picture is an image."""
    base, token = model.model, model.config.image_token_id
    refuse_softcap(model.config.text_config, "Gemma 3")

    def index_images(input_ids: Tensor, given: Mapping[str, Any]) -> Tensor:
        return by_runs(input_ids, [token])

    def layout(processor: Any, inputs: Mapping[str, Any], pictures: Sequence[Image.Image]) -> Boxes:
        if len(pictures) != int(by_runs(inputs["input_ids"], [token]).max()) + 1:
            raise QuotaError("the tokens of crops (pan and scan) cannot be placed; set do_pan_and_scan to false")
        side = int(model.config.mm_tokens_per_image**0.5)
        return [box for number in range(len(pictures)) for box in grid(number, side, side)]

    return Family(
        model=model,
        tower_blocks=base.vision_tower.encoder.layers,
        projectors=(base.multi_modal_projector,),
        text_model=base.language_model,
        visual_tokens=(token,),
        index_images=index_images,
        layout=layout,
        blocks=_blocks,
    )


def _blocks(given: Mapping[str, Any], past: int) -> Tensor | None:
    """Every run of `token_type_ids` 1, which count from the start of the conversation, is a block."""
    types = given.get("token_type_ids")
    if types is None:
        return None
    image = types == 1
    begins = image & ~pad(image[:, :-1], (1, 0), value=False)
    length = past + given["input_ids"].shape[1]
    blocks = torch.where(image, begins.cumsum(dim=1) - 1, -1)
    return pad(blocks, (0, length - blocks.shape[1]), value=-1)
