"""Idefics 3 and SmolVLM: a SigLIP tower, pixel shuffle; words that name row and column stand before every tile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from quota.models.boxes import Boxes, grid, tiles
from quota.models.family import Family
from quota.models.images import by_runs


def idefics3(model: Any) -> Family:
    """The rooms of an `Idefics3ForConditionalGeneration` or `SmolVLMForConditionalGeneration`.

    Every tile of a picture is an image of its own, and so is every frame of a video (SmolVLM).
    """
    base, token = model.model, model.config.image_token_id
    tower = model.config.vision_config
    side = tower.image_size // tower.patch_size // model.config.scale_factor

    def index_images(input_ids: Tensor, given: Mapping[str, Any]) -> Tensor:
        return by_runs(input_ids, [token])

    def layout(processor: Any, inputs: Mapping[str, Any], pictures: Sequence[Image.Image]) -> Boxes:
        if len(pictures) == int(by_runs(inputs["input_ids"], [token]).max()) + 1:
            return [box for number in range(len(pictures)) for box in grid(number, side, side)]
        # How many tiles a picture has is written in the prompt alone, in words; so the processor is asked again.
        made = processor.image_processor([list(pictures)], return_row_col_info=True)
        boxes: Boxes = []
        for number, (rows, columns) in enumerate(zip(made["rows"][0], made["cols"][0], strict=True)):
            boxes += tiles(number, rows, columns, side) + grid(number, side, side)
        return boxes

    return Family(
        model=model,
        tower_blocks=base.vision_model.encoder.layers,
        projectors=(base.connector,),
        text_model=base.text_model,
        visual_tokens=(token,),
        index_images=index_images,
        layout=layout,
    )
