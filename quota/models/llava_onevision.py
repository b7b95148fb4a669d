"""LLaVA-OneVision: tiles of any shape as LLaVA-NeXT has them, and videos whose frames are pooled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from quota.models.anyres import anyres
from quota.models.boxes import Boxes, grid, middle
from quota.models.family import Family
from quota.models.images import by_lengths, lengths
from quota.models.llava import tower_blocks


def llava_onevision(model: Any) -> Family:
    """The rooms of a `LlavaOnevisionForConditionalGeneration`; QuotaError for a tower that is not supported.

    All tiles of a picture are one image. Every frame of a video is one; the newline at its end goes with the last.
    """
    base, config = model.model, model.config
    side = config.vision_config.image_size // config.vision_config.patch_size
    pooled = math.ceil(side / 2)

    def index_images(input_ids: Tensor, given: Mapping[str, Any]) -> Tensor:
        frames = [count for length in lengths(given, "video") for count in _frames(length, pooled**2)]
        return by_lengths(input_ids, {config.image_token_id: lengths(given, "image"), config.video_token_id: frames})

    def layout(processor: Any, inputs: Mapping[str, Any], pictures: Sequence[Image.Image]) -> Boxes:
        if "pixel_values_videos" in inputs:
            return [*(box for number in range(len(pictures)) for box in grid(number, pooled, pooled)), None]
        if len(pictures) == 1:
            return anyres(0, pictures[0], config, most=int(processor.vision_aspect_ratio.removeprefix("anyres_max_")))
        # Of several pictures only the whole is seen, padded to a square.
        boxes: Boxes = []
        for number, picture in enumerate(pictures):
            width, height = picture.size
            view = middle(max(width, height) / width, max(width, height) / height)
            boxes += [*grid(number, side, side, view), None]
        return boxes

    return Family(
        model=model,
        tower_blocks=tower_blocks(model),
        projectors=(base.multi_modal_projector,),
        text_model=base.language_model,
        visual_tokens=(config.image_token_id, config.video_token_id),
        index_images=index_images,
        layout=layout,
        image_arguments=("pixel_values", "pixel_values_videos", "mm_encoder_outputs"),
        encodes_first=True,
    )


def _frames(length: int, per_frame: int) -> list[int]:
    frames = length // per_frame
    return [per_frame] * (frames - 1) + [length - per_frame * (frames - 1)]
