"""A decoder alone, of the Llama kind, which Qwen2 is too: no pictures, so all of a prompt is text.

The sweep quantises it with the same code as the decoder of a vision-language model: large text models are where
outliers are found, and `quota testbed` measures the quantiser there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from quota.models.boxes import Boxes
from quota.models.family import Family


def llama(model: Any) -> Family:
    """The rooms of a `LlamaForCausalLM` or `Qwen2ForCausalLM`: those for pictures are empty."""

    def index_images(input_ids: Tensor, given: Mapping[str, Any]) -> Tensor:
        return torch.full_like(input_ids, -1)

    def layout(processor: Any, inputs: Mapping[str, Any], pictures: Sequence[Image.Image]) -> Boxes:
        return []

    return Family(
        model=model,
        tower_blocks=nn.ModuleList(),
        projectors=(),
        text_model=model.model,
        visual_tokens=(),
        index_images=index_images,
        layout=layout,
        image_arguments=(),
    )
