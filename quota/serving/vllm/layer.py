"""One decoder layer's part of vLLM's cache: what vLLM is told of it, and the memory that it is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.v1.attention.backend import AttentionBackend, AttentionMetadataBuilder, CommonAttentionMetadata
from vllm.v1.kv_cache_layout import KVCacheLayout

from quota.attention.keys import KeyTransform
from quota.ops.head_transform import HeadTransform
from quota.serving.vllm.pages import Pages
from quota.serving.vllm.spec import PackedSpec


@dataclass(frozen=True)
class Tables:
    """What a pass must know of the blocks of a group of layers."""

    blocks: Tensor
    """int32 [requests, most blocks]"""


class TablesBuilder(AttentionMetadataBuilder[Tables]):
    """Takes the block tables from what vLLM prepares for a pass; where tokens go follows from what is kept."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> Tables:
        """The tables of one pass."""
        return Tables(common_attn_metadata.block_table_tensor)


class PackedBackend(AttentionBackend):
    """Attention to packed keys and values; the model's own modules call it (quota/serving/vllm/attention.py)."""

    supported_dtypes = [torch.float16, torch.bfloat16, torch.float32]  # noqa: RUF012 (as vLLM has it)

    @staticmethod
    def get_name() -> str:
        """In vLLM's log."""
        return "QUOTA"

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        """A layer's blocks stand behind one another, so that its slots are rows."""
        return (KVCacheLayout.LBHNC,)

    @staticmethod
    def get_impl_cls() -> Any:
        """There is none to call for one layer at a time."""
        raise NotImplementedError

    @staticmethod
    def get_builder_cls() -> type[TablesBuilder]:
        """Of the metadata."""
        return TablesBuilder


class PackedLayer(AttentionLayerBase):
    """The cache of decoder layer `index`, of which vLLM knows by its `name`."""

    def __init__(
        self, index: int, pages: Pages, transform: KeyTransform | None, stage: int, keep: float, part: int
    ) -> None:
        """`keep` and `part` are those of the layer's `PackedSpec`."""
        self.index = index
        self.name = f"quota.layers.{index}.attention"
        self.pages = pages
        self.stage = stage
        self.keep = keep
        self._transform = transform
        self._part = part

    @property
    def transform(self) -> HeadTransform | None:
        """What is done to keys in front of the rotation."""
        return None if self._transform is None else self._transform.operand()

    @property
    def turning(self) -> Tensor | None:
        """Centres [G, D] of keys before RoPE, if there are any."""
        return None if self._transform is None else self._transform.turning

    @property
    def memory(self) -> Tensor:
        """All slots, uint8 [slots, G * C]."""
        return self.kv_cache.view(-1, self.pages.bytes_of_token)

    @property
    def block(self) -> int:
        """Slots of a block."""
        return self.kv_cache.shape[2]

    def get_attn_backend(self) -> type[AttentionBackend]:
        """Of vLLM's kind."""
        return PackedBackend

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> PackedSpec:
        """What the cache manager is told."""
        return PackedSpec(
            block_size=vllm_config.cache_config.block_size,
            num_kv_heads=self.pages.heads,
            head_size=self.pages.spec.width,
            dtype=torch.uint8,
            num_head_slots=1,
            state_content_bytes=self.pages.bytes_of_token,
            keep=self.keep,
            part=self._part,
        )
