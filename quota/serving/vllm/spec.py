"""What vLLM's cache manager is told of a layer: bytes of a token, and which share of visual tokens is stored.

Layers that keep the same share, and stand in the same part of their stage, have one block table together.
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm.config import VllmConfig
from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from quota.serving.vllm.manager import KeptManager


@dataclass(frozen=True, kw_only=True)
class PackedSpec(AttentionSpec):
    """Rows of a `Pages`, in blocks of `block_size` tokens."""

    keep: float
    """The share of an image's tokens that is stored."""
    part: int
    """Of the decoder (quota/serving/vllm/stages.py)."""

    def max_memory_usage_bytes(self, vllm_config: VllmConfig) -> int:
        """Of the longest request: one without pictures, of which nothing is dropped."""
        longest = vllm_config.model_config.max_model_len
        return -(-longest // self.block_size) * self.page_size_bytes

    def is_uniform_with_collection(self, kv_cache_specs: dict[str, KVCacheSpec]) -> bool:
        """Whether these layers need one block table only."""
        return all(spec == self for spec in kv_cache_specs.values())


# Kinds of vLLM's own are registered at the first look into a registry that is empty: so they come first.
KVCacheSpecRegistry.check_kv_cache_spec_registry({})
KVCacheSpecRegistry.register(PackedSpec, KeptManager)
