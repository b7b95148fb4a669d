"""LLaVA 1.5: a CLIP, SigLIP or DINOv2 tower, an MLP projector, a decoder; every image is the same number of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor, nn

from quota.errors import QuotaError
from quota.models.boxes import Boxes, View, grid, middle
from quota.models.family import Family
from quota.models.images import by_count, visual_mask

# Towers with a fixed number of patches, and how many class tokens stand before them.
_CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0, "dinov2": 1}


def llava(model: Any) -> Family:
    """The rooms of a `LlavaForConditionalGeneration`; QuotaError for a tower whose images vary in length."""
    base, token = model.model, model.config.image_token_id
    per_image = tokens_per_image(model)

    def index_images(input_ids: Tensor, given: Mapping[str, Any]) -> Tensor:
        return by_count(visual_mask(input_ids, [token]), per_image)

    def layout(processor: Any, inputs: Mapping[str, Any], pictures: Sequence[Image.Image]) -> Boxes:
        side = model.config.vision_config.image_size // model.config.vision_config.patch_size
        class_token: Boxes = [None] * (per_image - side**2)
        return [
            box
            for number, picture in enumerate(pictures)
            for box in [*class_token, *grid(number, side, side, _seen(processor.image_processor, picture))]
        ]

    return Family(
        model=model,
        tower_blocks=tower_blocks(model),
        projectors=(base.multi_modal_projector,),
        text_model=base.language_model,
        visual_tokens=(token,),
        index_images=index_images,
        layout=layout,
    )


def tower_blocks(model: Any) -> nn.ModuleList:
    """The transformer blocks of a CLIP, SigLIP or DINOv2 tower; QuotaError for another."""
    tower = model.config.vision_config
    if tower.model_type not in _CLASS_TOKENS:
        name, known = model.config.model_type, ", ".join(_CLASS_TOKENS)
        raise QuotaError(f"{name} with a {tower.model_type} tower is not supported; supported towers: {known}")
    encoder = model.model.vision_tower.encoder
    return encoder.layer if tower.model_type == "dinov2" else encoder.layers


def tokens_per_image(model: Any) -> int:
    """Visual tokens of one image after the projector (V0 of equation 5)."""
    tower_blocks(model)
    config = model.config
    tower = config.vision_config
    patches = (tower.image_size // tower.patch_size) ** 2 + _CLASS_TOKENS[tower.model_type]
    # "default" drops the first token of the tower's output, "full" keeps it.
    return patches - (config.vision_feature_select_strategy == "default")


def _seen(images: Any, picture: Image.Image) -> View:
    """What the tower sees: all of the picture, its middle square, or it in the middle of a padded square."""
    width, height = picture.size
    size = dict(images.size)
    if getattr(images, "do_pad", False):
        square = max(width, height)
        return middle(square / width, square / height)
    if size.get("shortest_edge") is None or not images.do_center_crop:
        return middle(1, 1)
    scale = min(width, height) / size["shortest_edge"]
    crop = dict(images.crop_size)
    return middle(crop["width"] * scale / width, crop["height"] * scale / height)
