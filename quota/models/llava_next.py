"""LLaVA-NeXT: LLaVA whose images are cut into tiles; a picture is as many tokens as its shape gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from quota.models.anyres import anyres
from quota.models.boxes import Boxes
from quota.models.family import Family
from quota.models.images import by_lengths, lengths
from quota.models.llava import tower_blocks


def llava_next(model: Any) -> Family:
    """The rooms of a `LlavaNextForConditionalGeneration`; QuotaError for a tower that is not supported.

    All tiles of a picture, with the small copy before them and the newlines between, are one image.
    """
    base, token = model.model, model.config.image_token_id

    def index_images(input_ids: Tensor, given: Mapping[str, Any]) -> Tensor:
        return by_lengths(input_ids, {token: lengths(given, "image")})

    def layout(processor: Any, inputs: Mapping[str, Any], pictures: Sequence[Image.Image]) -> Boxes:
        return [box for number, picture in enumerate(pictures) for box in anyres(number, picture, model.config)]

    return Family(
        model=model,
        tower_blocks=tower_blocks(model),
        projectors=(base.multi_modal_projector,),
        text_model=base.language_model,
        visual_tokens=(token,),
        index_images=index_images,
        layout=layout,
        encodes_first=True,
    )
