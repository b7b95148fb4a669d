"""InternVL 3 in transformers' own format: tiles of one size, a word before and behind every picture and frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from quota.models.boxes import Boxes, grid, tiles
from quota.models.family import Family
from quota.models.images import by_runs

# Of its image processor: the size of a tile, and how few and many tiles a picture may have.
_CUT = ("size", "min_patches", "max_patches")


def internvl(model: Any) -> Family:
    """The rooms of an `InternVLForConditionalGeneration`. All tiles of a picture are one image."""
    base, token = model.model, model.config.image_token_id
    tower = model.config.vision_config
    side = int(tower.image_size[0] // tower.patch_size[0] * model.config.downsample_ratio)

    def index_images(input_ids: Tensor, given: Mapping[str, Any]) -> Tensor:
        return by_runs(input_ids, [token])

    def layout(processor: Any, inputs: Mapping[str, Any], pictures: Sequence[Image.Image]) -> Boxes:
        images = by_runs(inputs["input_ids"], [token])
        boxes: Boxes = []
        for number, picture in enumerate(pictures):
            # A picture of one tile, as frames are, has no small copy.
            if int((images == number).sum()) > side**2:
                width, height = picture.size
                tile, few, most = (getattr(processor.image_processor, name) for name in _CUT)
                columns, rows = get_optimal_tiled_canvas((height, width), (tile.height, tile.width), few, most)
                boxes += tiles(number, rows, columns, side)
            boxes += grid(number, side, side)
        return boxes

    return Family(
        model=model,
        tower_blocks=base.vision_tower.encoder.layer,
        projectors=(base.multi_modal_projector,),
        text_model=base.language_model,
        visual_tokens=(token,),
        index_images=index_images,
        layout=layout,
    )
