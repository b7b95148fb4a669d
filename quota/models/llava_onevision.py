"""LLaVA-OneVision: tiles of any shape as LLaVA-NeXT has them, and videos whose frames are pooled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from quota.models.family import Family
from quota.models.images import by_lengths, lengths
from quota.models.llava import tower_blocks


def llava_onevision(model: Any) -> Family:
    """The rooms of a `LlavaOnevisionForConditionalGeneration`; QuotaError for a tower other than CLIP and SigLIP.

    All tiles of a picture are one image. Every frame of a video is one; the newline at its end goes with the last.
    """
    base, config = model.model, model.config
    per_frame = math.ceil(config.vision_config.image_size // config.vision_config.patch_size / 2) ** 2

    def index_images(input_ids: Tensor, given: Mapping[str, Any]) -> Tensor:
        frames = [count for length in lengths(given, "video") for count in _frames(length, per_frame)]
        return by_lengths(input_ids, {config.image_token_id: lengths(given, "image"), config.video_token_id: frames})

    return Family(
        model=model,
        base=base,
        tower=base.vision_tower,
        tower_blocks=tower_blocks(model),
        projectors=(base.multi_modal_projector,),
        text_model=base.language_model,
        lm_head=model.lm_head,
        visual_tokens=(config.image_token_id, config.video_token_id),
        index_images=index_images,
        image_arguments=("pixel_values", "pixel_values_videos", "mm_encoder_outputs"),
        encodes_first=True,
    )


def _frames(length: int, per_frame: int) -> list[int]:
    frames = length // per_frame
    return [per_frame] * (frames - 1) + [length - per_frame * (frames - 1)]
