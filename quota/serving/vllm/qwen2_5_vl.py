"""Qwen2.5-VL in vLLM: pictures of any size, M-RoPE. No video, whose frames vLLM does not tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from vllm.model_executor.models import qwen2_5_vl
from vllm.model_executor.models.interfaces import SupportsMRoPE
from vllm.multimodal import MULTIMODAL_REGISTRY

from quota.serving.vllm.model import ServedModel

_Theirs = qwen2_5_vl.Qwen2_5_VLForConditionalGeneration


class Pictures(qwen2_5_vl.Qwen2_5_VLProcessingInfo):
    """What a prompt may hold."""

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """How many of each kind."""
        return {"image": None}


@MULTIMODAL_REGISTRY.register_processor(
    qwen2_5_vl.Qwen2_5_VLMultiModalProcessor, info=Pictures, dummy_inputs=qwen2_5_vl.Qwen2_5_VLDummyInputsBuilder
)
class QuotaQwen25VL(ServedModel, SupportsMRoPE):
    """`Qwen2_5_VLForConditionalGeneration` of a checkpoint of ours."""

    # Positions of a prompt follow from its configuration and pictures alone.
    iter_mm_grid_thw: Any = _Theirs.iter_mm_grid_thw
    get_mrope_input_positions: Any = _Theirs.get_mrope_input_positions

    @property
    def config(self) -> Any:
        """Of transformers, where vLLM's code looks for it."""
        return self.hf.config

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """What stands for a picture in a prompt."""
        return _Theirs.get_placeholder_str(modality, i)

    def embed_multimodal(self, **kwargs: Any) -> Sequence[Tensor]:
        """Features [tokens, D] of each picture, encoded by itself: it is the same in any company."""
        grids = kwargs["image_grid_thw"]
        pictures = kwargs["pixel_values"].split(grids.prod(-1).tolist())
        return [
            self.features(pixel_values=pixels, image_grid_thw=grid[None])[0]
            for pixels, grid in zip(pictures, grids, strict=True)
        ]
