"""LLaVA 1.5 in vLLM: every picture is the same number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from vllm.model_executor.models import llava
from vllm.multimodal import MULTIMODAL_REGISTRY

from quota.errors import QuotaError
from quota.serving.vllm.model import ServedModel


@MULTIMODAL_REGISTRY.register_processor(
    llava._build_llava_or_pixtral_hf_processor,
    info=llava._build_llava_or_pixtral_hf_info,
    dummy_inputs=llava.LlavaDummyInputsBuilder,
)
class QuotaLlava(ServedModel):
    """`LlavaForConditionalGeneration` of a checkpoint of ours."""

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """What stands for a picture in a prompt."""
        return llava.LlavaForConditionalGeneration.get_placeholder_str(modality, i)

    def embed_multimodal(self, **kwargs: Any) -> Sequence[Tensor]:
        """Features [tokens, D] of each picture."""
        pixels = kwargs.get("pixel_values")
        if pixels is None:
            raise QuotaError("this model takes pictures, not their features")
        return self.features(pixel_values=pixels)
