"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: towers for pictures of any size, M-RoPE, DeepStack in the third.

Words stand around every picture. The frames of a video touch in the first two, where only time, row and column of
their M-RoPE positions tell them apart, and have time stamps between them in Qwen3-VL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image
from torch import Tensor, nn

from quota.models.boxes import Boxes, grid
from quota.models.family import Family
from quota.models.images import by_runs


def qwen2_vl(model: Any) -> Family:
    """The rooms of a `Qwen2VLForConditionalGeneration` or `Qwen2_5_VLForConditionalGeneration`."""
    return replace(_qwen(model, (model.model.visual.merger,)), frames_in_positions=True)


def qwen3_vl(model: Any) -> Family:
    """The rooms of a `Qwen3VLForConditionalGeneration`; mergers in the order in which the tower calls them."""
    visual = model.model.visual
    deep = visual.deepstack_merger_list
    return replace(_qwen(model, (*deep, visual.merger)), deepstack=len(deep))


def _qwen(model: Any, projectors: tuple[nn.Module, ...]) -> Family:
    base, config = model.model, model.config
    tokens = (config.image_token_id, config.video_token_id)

    def index_images(input_ids: Tensor, given: Mapping[str, Any]) -> Tensor:
        return by_runs(input_ids, tokens)

    def layout(processor: Any, inputs: Mapping[str, Any], pictures: Sequence[Image.Image]) -> Boxes:
        merge, pair = config.vision_config.spatial_merge_size, config.vision_config.temporal_patch_size
        boxes: Boxes = []
        for number, (_, height, width) in enumerate(_grids(inputs, "image_grid_thw")):
            boxes += grid(number, height // merge, width // merge)
        for _, height, width in _grids(inputs, "video_grid_thw"):
            for frame in range(0, len(pictures), pair):
                span = min(pair, len(pictures) - frame)
                boxes += grid(frame, height // merge, width // merge, span=span)
        return boxes

    return Family(
        model=model,
        tower_blocks=base.visual.blocks,
        projectors=projectors,
        text_model=base.language_model,
        visual_tokens=tokens,
        index_images=index_images,
        layout=layout,
        image_arguments=("pixel_values", "pixel_values_videos", "mm_encoder_outputs"),
    )


def _grids(inputs: Mapping[str, Any], name: str) -> list[list[int]]:
    """Time, height and width in patches of each picture or video."""
    return inputs[name].tolist() if name in inputs else []
