"""LLaVA-OneVision in vLLM: one picture in tiles.

Of several pictures transformers shows the whole of each alone, and vLLM the tiles of each, so their prompts differ:
there is one picture in a prompt here. And no video, whose frames vLLM does not tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from vllm.model_executor.models import llava_onevision
from vllm.multimodal import MULTIMODAL_REGISTRY

from quota.serving.vllm.model import ServedModel


class OnePicture(llava_onevision.LlavaOnevisionProcessingInfo):
    """What a prompt may hold."""

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """How many of each kind."""
        return {"image": 1}


@MULTIMODAL_REGISTRY.register_processor(
    llava_onevision.LlavaOnevisionMultiModalProcessor,
    info=OnePicture,
    dummy_inputs=llava_onevision.LlavaOnevisionDummyInputsBuilder,
)
class QuotaLlavaOnevision(ServedModel):
    """`LlavaOnevisionForConditionalGeneration` of a checkpoint of ours."""

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """What stands for a picture in a prompt."""
        return llava_onevision.LlavaOnevisionForConditionalGeneration.get_placeholder_str(modality, i)

    def embed_multimodal(self, **kwargs: Any) -> Sequence[Tensor]:
        """Features [tokens, D] of each picture, which differ in tiles."""
        pictures = zip(kwargs["pixel_values"], kwargs["image_sizes"], strict=True)
        return [self.features(pixel_values=tiles[None], image_sizes=size[None])[0] for tiles, size in pictures]
