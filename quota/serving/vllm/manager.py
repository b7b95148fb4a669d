"""The scheduler's count of blocks: for a stage behind a cut, of the tokens that are kept.

Blocks of dropped tokens are never allocated: attention of a prefill reads what it has just packed, so tokens that are
dropped by that very pass need no place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.request import Request

from quota.serving.vllm.stages import dropped, image_sizes


class KeptManager(FullAttentionManager):
    """Blocks of the layers with one `PackedSpec`."""

    requests: Mapping[str, Request]
    """All that the scheduler has; it says so when it is made."""

    def get_num_blocks_to_allocate(self, request_id: str, num_tokens: int, *args: Any, **kwargs: Any) -> int:
        """Blocks that a request of so many tokens still needs."""
        return super().get_num_blocks_to_allocate(request_id, self._stored(request_id, num_tokens), *args, **kwargs)

    def allocate_new_blocks(self, request_id: str, num_tokens: int, num_tokens_main_model: int) -> list[KVCacheBlock]:
        """The blocks that it still needed."""
        return super().allocate_new_blocks(request_id, self._stored(request_id, num_tokens), num_tokens_main_model)

    def _stored(self, request_id: str, tokens: int) -> int:
        keep: float = getattr(self.kv_cache_spec, "keep")  # noqa: B009 (a PackedSpec, which needs this class)
        return tokens - dropped(keep, image_sizes(self.requests[request_id].mm_features))
